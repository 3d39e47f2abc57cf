"""Files that pipelines store: codes, lineages, examples, the text of a corpus, and saved states of a fit."""

import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.workers.activations.corpus import load_documents
from featurewatch.workers.activations.tensorfiles import is_whole, save_checked, settle
from featurewatch.workers.crosscoder.code import Code
from featurewatch.workers.crosscoder.config import FitConfig, Layout
from featurewatch.workers.crosscoder.fit import FitState
from featurewatch.workers.crosscoder.matching import KINDS, Link
from featurewatch.workers.crosscoder.model import Crosscoder

log = structlog.get_logger("featurewatch.worker")

EXAMPLES = 16
"""Top activating positions stored for each feature."""
PARTIAL_DAYS = 7
"""How long a failed run can be retried and resume where it stopped."""


def save_code(path: Path, code: Code, numbers: Tensor, born: Tensor) -> None:
    """Save CSR arrays, the feature number of each column [m], and which columns are new [m]."""
    save_file(
        {
            "indptr": code.indptr.cpu().contiguous(),
            "indices": code.latents.cpu().int().contiguous(),
            "values": code.values.cpu().float().contiguous(),
            "feature_numbers": numbers.cpu().contiguous(),
            "born": born.cpu().contiguous(),
        },
        path,
    )


def load_code(path: Path, device: torch.device) -> tuple[Code, Tensor, Tensor]:
    """Code, feature numbers and new columns, as passed to `save_code`."""
    t = load_file(path, device=str(device))
    code = Code(t["indptr"], t["indices"].long(), t["values"], len(t["feature_numbers"]))
    return code, t["feature_numbers"].cpu(), t["born"].cpu()


def save_lineage(path: Path, links: Sequence[Link]) -> None:
    """Save the links of a re-fit between feature numbers."""
    save_file(
        {
            "old": torch.tensor([-1 if link.old is None else link.old for link in links], dtype=torch.int64),
            "new": torch.tensor([-1 if link.new is None else link.new for link in links], dtype=torch.int64),
            "kind": torch.tensor([KINDS.index(link.kind) for link in links], dtype=torch.int64),
            "score": torch.tensor([link.score for link in links], dtype=torch.float64),
        },
        path,
    )


def load_lineage(path: Path) -> list[Link]:
    """Links as passed to `save_lineage`."""
    t = load_file(path)
    columns = (t[name].tolist() for name in ("old", "new", "kind", "score"))
    return [
        Link(old if old >= 0 else None, new if new >= 0 else None, KINDS[kind], score)
        for old, new, kind, score in zip(*columns, strict=True)
    ]


def save_examples(path: Path, code: Code) -> tuple[np.ndarray, np.ndarray]:
    """Save the top positions of each feature. Returns positions (int64, -1: none) and values, [m, EXAMPLES]."""
    rows = torch.arange(code.n).repeat_interleave(code.indptr.diff().cpu()).numpy()
    latents, values = code.latents.cpu().numpy(), code.values.cpu().numpy()
    order = np.lexsort((rows, -values, latents))
    sorted_latents = latents[order]
    first = np.searchsorted(sorted_latents, np.arange(code.m))
    rank = np.arange(len(order)) - first[sorted_latents]
    best = order[rank < EXAMPLES]
    positions = np.full((code.m, EXAMPLES), -1, dtype=np.int64)
    activations = np.zeros((code.m, EXAMPLES), dtype=np.float32)
    cell = (latents[best], rank[rank < EXAMPLES])
    positions[cell] = rows[best]
    activations[cell] = values[best]
    save_file({"positions": torch.from_numpy(positions), "values": torch.from_numpy(activations)}, path)
    return positions, activations


@dataclass(frozen=True)
class CorpusText:
    """The text of a family's probe corpus, and where in it each position is."""

    document: np.ndarray
    """int64 [n] document ids"""
    start: np.ndarray
    """int64 [n] first character of the token"""
    end: np.ndarray
    """int64 [n] one past its last"""
    texts: dict[int, str]
    """document id -> text"""


def load_text(artifacts: ArtifactStore, positions: dict[str, Any]) -> CorpusText:
    """The text of a family whose `positions` have documents."""
    tensors = load_file(artifacts.path(positions["artifact"]))
    document, start, end = (tensors[name].numpy() for name in ("document", "start", "end"))
    documents = load_documents(artifacts.path(positions["documents"]))
    return CorpusText(document, start, end, {part.id: part.text for part in documents})


def clear_partial(folder: Path) -> None:
    """Remove harvests and fits that were not resumed for PARTIAL_DAYS: their runs failed or were cancelled."""
    oldest = time.time() - PARTIAL_DAYS * 86400
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):  # other workers move and remove their own
            if max(part.stat().st_mtime for part in [path, *path.rglob("*")]) >= oldest:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def partial_fit(data_dir: Path, artifact: str) -> Path:
    """Where the fit behind an artifact saves its state. Artifact names begin with the family."""
    return data_dir / "partial" / f"{artifact.removesuffix('.safetensors').replace('/', '-')}.fit"


def save_state(path: Path, state: FitState) -> None:
    """Save the state of a fit with its digest: temporary file, fsync, rename."""
    tensors = {f"parameter{i}": p for i, p in enumerate(state.model.parameters())}
    for i, (first, second) in enumerate(state.moments):
        tensors[f"first{i}"], tensors[f"second{i}"] = first, second
    tensors |= {f"map{i}": p for i, p in enumerate(state.model.maps)}
    tensors |= {
        "threshold": state.model.threshold.clone(),
        "silent": state.silent,
        "fired": state.fired,
        "scalars": torch.tensor([state.cut, state.penalty], dtype=torch.float64),
        "step": torch.tensor([state.step]),
        "losses": torch.tensor(state.losses, dtype=torch.float64),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_checked(temporary, tensors)
    settle(temporary, path)


def remove_state(path: Path) -> None:
    """Remove a saved state, and what a killed worker left of an unfinished save."""
    for file in (path, path.with_suffix(".tmp")):
        file.unlink(missing_ok=True)


def is_saved(path: Path) -> bool:
    """Whether there is a state to resume from. A damaged one is removed."""
    if not path.exists():
        return False
    if is_whole(path):
        return True
    log.warning("the saved state of a fit is damaged; starting over", file=path.name)
    remove_state(path)
    return False


def load_state(path: Path, config: FitConfig, layout: Layout, device: torch.device) -> FitState:
    """The state that `save_state` wrote."""
    t = load_file(path, device=str(device))
    maps = tuple(t[f"map{i}"] for i in range(sum(name.startswith("map") for name in t)))
    learnt = (t["parameter0"], t["parameter1"], t["parameter2"], t["parameter3"])
    model = Crosscoder(config, layout, *learnt, t["threshold"], maps)
    cut, penalty = t["scalars"].tolist()
    return FitState(
        model=model,
        moments=[(t[f"first{i}"], t[f"second{i}"]) for i in range(len(model.parameters()))],
        silent=t["silent"],
        fired=t["fired"],
        cut=cut,
        penalty=penalty,
        step=int(t["step"]),
        losses=t["losses"].tolist(),
    )
