"""Models that several tests read."""

from pathlib import Path

import pytest

from tests.unit.activations.tiny import save_checkpoint


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with a byte-level tokenizer. Read only."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "llama")
