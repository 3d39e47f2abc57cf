"""Fixtures: an embedded service that the tests of the command share, and what it reads."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.planted_data import make_lineage, write_checkpoint
from tests.cli.live import SHAPE, Up


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with activations of two checkpoints, v1 and v2: some features are weaker or gone in v2."""
    folder = tmp_path_factory.mktemp("planted")
    lineage = make_lineage(3, **SHAPE)
    for checkpoint in (1, 2):
        write_checkpoint(lineage, checkpoint, folder / f"v{checkpoint}")
    return folder


@pytest.fixture(scope="session")
def service(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("service"), "--root", str(planted))
    yield up
    assert up.stop() == 0
