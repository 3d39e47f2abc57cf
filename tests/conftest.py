"""What holds for every test. Fixtures and marks are in tests/plugins, which import a server when a test asks for it."""

import os

# Before anything imports torch: the tests run as several processes on few cores, and idle threads that spin
# for work take the cores from those that have some.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# No test asks a hub on the network: a test's own cache has all that it needs.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest

pytest_plugins = ("tests.plugins.lanes", "tests.plugins.databases", "tests.plugins.filled_server")


def pytest_addoption(parser: pytest.Parser) -> None:
    """What `make chaos` does more of than `make test`."""
    parser.addoption("--onboardings", type=int, default=3, help="of tests/e2e/test_chaos.py, for each database")
    parser.addoption("--chaos-seed", type=int, default=0, help="of the order and the times of disturbances")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's shell reaches a test."""
    for name in list(os.environ):
        if name.startswith("FEATUREWATCH_") and not name.startswith("FEATUREWATCH_TEST_"):
            monkeypatch.delenv(name)
