"""Everything is killed at random moments; at the end all is as if nobody had disturbed it. `make chaos`: for longer."""

import sys
from pathlib import Path

import pytest

from tests.e2e.chaos import Deployment


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_nothing_is_lost_and_nothing_said_twice(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    onboardings, seed = request.config.getoption("--onboardings"), request.config.getoption("--chaos-seed")
    with Deployment(tmp_path, kind, seed) as deployment:
        with deployment.disturbed():
            accepted = deployment.onboard(onboardings)
            assert deployment.one_turn()
        deployment.end()
        deployment.check(accepted)
    done, retried = dict(deployment.done), dict(deployment.retried)
    with capsys.disabled():
        sys.stdout.write(f"\n{kind}: {len(accepted)} onboardings, {done}, retried {retried}\n")
