"""Marks that say what a test needs, and the order in which the processes of a run take the modules.

`make unit` runs the tests without a mark. Marks follow from fixtures, parameters and paths; no test sets one itself.
"""

import gc
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

FIXTURES = {
    "postgres": "postgres",
    "broker_url": "broker",
    "valkey": "broker",
    "site": "browser",
    # They start processes that import the whole service or torch.
    "home": "slow",
    "reader": "slow",
    "service": "slow",
    "start": "slow",
    "start_either": "slow",
}
"""Fixture -> mark."""

SLOW = (
    "tests/e2e/",
    "tests/api/test_deletions.py",
    "tests/api/test_dictionaries.py::test_saelens_and_dictionary_learning_load_their_layouts",
    "tests/api/test_fuzz.py",
    "tests/cli/test_cli.py",
    "tests/cli/test_docs_commands.py",
    "tests/cli/test_gate.py",
    "tests/cli/test_installed.py",
    "tests/cli/test_run_log.py",
    "tests/cli/test_terminal.py",
    "tests/unit/activations/test_corpus.py",
    "tests/unit/activations/test_harvest.py",
    "tests/unit/activations/test_positions.py",
    "tests/unit/crosscoder/test_fit.py",
    "tests/unit/crosscoder/test_matching.py",
    "tests/unit/crosscoder/test_order.py",
    "tests/unit/crosscoder/test_parallel.py",
    "tests/unit/dependencies/test_attribution.py",
    "tests/unit/dependencies/test_planted.py",
    "tests/unit/test_bench_fit.py",
    "tests/unit/test_client_types.py",
    "tests/unit/test_docs.py::test_generated_pages_are_up_to_date",
    "tests/unit/test_layout.py::test_the_service_starts_without_torch",
    "tests/unit/test_planted_baselines.py",
    "tests/unit/test_supply_chain.py",
    "tests/unit/test_telemetry.py",
    "tests/web/test_walk.py",
    "tests/workers/test_calibrating.py",
    "tests/workers/test_celery.py",
    "tests/workers/test_clocks.py",
    "tests/workers/test_dependencies.py",
    "tests/workers/test_fitting.py",
    "tests/workers/test_frozen.py",
    "tests/workers/test_labelling.py",
    "tests/workers/test_own_codes.py",
    "tests/workers/test_past.py",
    "tests/workers/test_promoting.py",
    "tests/workers/test_run_log.py",
    "tests/workers/test_runner.py",
    "tests/workers/test_sharing.py",
    "tests/workers/test_signature.py",
)
"""Tests that take seconds of a processor, or wait for a worker: folders, modules, single tests."""

LONGEST = ("test_kill.py", "test_chaos.py", "test_docs_commands.py", "test_full_disk.py")
"""Modules of few tests that take minutes."""


def excludes(config: pytest.Config, mark: str) -> bool:
    """Whether this run leaves out the tests with a mark."""
    return f"not {mark}" in config.getoption("markexpr")


def check_lane(config: pytest.Config, mark: str) -> None:
    """Fail if a run that leaves out a mark starts what the mark stands for: then FIXTURES lacks a fixture."""
    if excludes(config, mark):
        pytest.fail(f"a test of this lane needs the mark `{mark}`: add its fixture to tests/plugins/lanes.py")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Import the test modules without garbage collection: what they import lives until the end of the run."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not import modules whose tests would all be left out: that takes longer than many tests."""
    name = collection_path.relative_to(config.rootpath).as_posix()
    return True if name.startswith(SLOW) and excludes(config, "slow") else None


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test by what it needs."""
    assert isinstance(item, pytest.Function)
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    marks = {FIXTURES[name] for name in item.fixturenames if name in FIXTURES}
    texts = [text for value in parameters for text in (value if isinstance(value, tuple) else (value,))]
    if any(isinstance(text, str) and text in ("postgres", "on_postgres") for text in texts):
        marks.add("postgres")
    if item.nodeid.startswith(SLOW):
        marks.add("slow")
    for mark in sorted(marks):
        item.add_marker(mark)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the modules, so that no process starts a long one when the others have finished.

    Each module goes to one process, in this order (`--no-loadscope-reorder`): the longest, then those of many tests.
    """
    sizes = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path.name not in LONGEST, -sizes[item.path]))
