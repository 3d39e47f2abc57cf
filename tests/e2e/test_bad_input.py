"""Input that cannot be used: each kind is refused with its own code and a message that helps, and changes nothing.

Every case is tried twice: as the service meets it, which looks at the files when they are registered, and as a worker
meets it, where good files were registered and bad ones lie there when their turn comes.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from featurewatch.service.client import ApiError
from featurewatch.service.models import (
    Alert,
    Checkpoint,
    Code,
    Event,
    Family,
    Feature,
    Measurement,
    Run,
    Source,
    Verdict,
)
from tests.e2e.parts import HOOK_POINT, OPTIONS, WAIT_SECONDS, Service, rows_of, unfinished
from tests.unit.activations.tiny import save_checkpoint, weights_of, write_activations
from tests.unit.checkpoints.raw import write_safetensors

POSITIONS, WIDTH = 1200, 16
TABLES = (Family, Checkpoint, Source, Feature, Code, Verdict, Measurement, Alert, Event, Run)


def activations(seed: int = 0) -> torch.Tensor:
    """[POSITIONS, WIDTH] sums of a few sparse directions; other seeds give the same with other noise."""
    rng = np.random.default_rng(7)
    code = rng.exponential(1.0, (POSITIONS, 12)) * (rng.random((POSITIONS, 12)) < 0.15)
    noise = np.random.default_rng(seed).normal(0, 0.05, (POSITIONS, WIDTH))
    return torch.from_numpy((code @ rng.normal(0, 1, (12, WIDTH)) + noise).astype(np.float32))


def good_activations(folder: Path, seed: int = 1) -> Path:
    return write_activations(folder, {HOOK_POINT: activations(seed)}, shard=500)


def good_model(folder: Path, seed: int = 1) -> Path:
    return save_checkpoint(folder, "llama", seed=seed)


class Families:
    """Two families, one of models and one of precomputed activations, each with one judged checkpoint."""

    def __init__(self, service: Service) -> None:
        self.service, self.client = service, service.client
        self.folder = service.folder / "releases"
        self.folder.mkdir()
        texts = [
            f"The quick brown fox number {n} jumps over the lazy dog, and says so {n % 7} times." for n in range(60)
        ]
        corpus = self.folder / "corpus.jsonl"
        corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        self.client.create_family("model", ["resid_post.3"], corpus={"uri": f"file://{corpus}"}, crosscoder=OPTIONS)
        self.client.create_family("brought", [HOOK_POINT], crosscoder=OPTIONS)
        service.judge("model", "v1", f"file://{good_model(self.folder / 'model-v1', 0)}")
        service.judge("brought", "v1", f"activations+file://{good_activations(self.folder / 'brought-v1', 0)}")

    def uri(self, family: str, folder: Path) -> str:
        return f"file://{folder}" if family == "model" else f"activations+file://{folder}"

    def good(self, family: str, folder: Path) -> Path:
        return good_model(folder) if family == "model" else good_activations(folder)

    def dump(self) -> dict[str, list[dict[str, Any]]]:
        """All rows of all tables that a checkpoint may leave something in."""
        return {table.__tablename__: rows_of(self.service.database_url, table) for table in TABLES}


@pytest.fixture(scope="module")
def families(service: Service) -> Families:
    return Families(service)


# What is bad: each takes a folder with a good checkpoint and spoils it.


def pickled(folder: Path) -> None:
    torch.save(weights_of(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def disguised_pickle(folder: Path) -> None:
    torch.save(weights_of(folder / "model.safetensors"), folder / "model.safetensors")


def cut_model(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def fewer_layers(folder: Path) -> None:
    """A model that ends before the family's hook point: two layers instead of four."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    tensors = weights_of(folder / "model.safetensors")
    kept = {name: t for name, t in tensors.items() if ".layers.2." not in name and ".layers.3." not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


def more_layers(folder: Path) -> None:
    """A config of which the empty model alone would fill the memory."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2_000_000}))


def large_header(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", b"{" + b" " * 81_000_000)


def embedded_adapter(folder: Path) -> None:
    """A file that transformers follows to another model."""
    config = {"peft_type": "LORA", "base_model_name_or_path": "/etc", "r": 1, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def cut_shard(folder: Path) -> None:
    file = folder / f"{HOOK_POINT}-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-64])


def not_finite(folder: Path) -> None:
    values = activations()
    values[777, 3] = torch.nan
    write_activations(folder, {HOOK_POINT: values}, shard=500)


def wider(folder: Path) -> None:
    write_activations(folder, {HOOK_POINT: torch.cat([activations(), activations()], 1)}, shard=500)


def fewer_positions(folder: Path) -> None:
    write_activations(folder, {HOOK_POINT: activations()[:-100]}, shard=500)


def other_documents(folder: Path) -> None:
    """As many positions as the family's, but cut into documents elsewhere: they are other positions."""
    write_activations(folder, {HOOK_POINT: activations()}, shard=500, document=np.arange(POSITIONS) // 7)


def other_hook_point(folder: Path) -> None:
    shutil.rmtree(folder)
    write_activations(folder, {"mlp_out.1": activations()}, shard=500)


def shard_gone(folder: Path) -> None:
    (folder / f"{HOOK_POINT}-00002.safetensors").unlink()


def pickle_as_shard(folder: Path) -> None:
    torch.save(activations()[:500], folder / f"{HOOK_POINT}-00000.safetensors")


def link_to_elsewhere(folder: Path) -> None:
    """A shard that is a link out of the roots."""
    file = folder / f"{HOOK_POINT}-00000.safetensors"
    outside = folder.parents[2] / "outside"
    outside.mkdir(exist_ok=True)
    shutil.copyfile(file, outside / file.name)
    file.unlink()
    file.symlink_to(outside / file.name)


@dataclass(frozen=True)
class Case:
    """How to spoil a checkpoint of a family, and what is said then."""

    family: str
    spoil: Callable[[Path], None]
    code: str
    words: tuple[str, ...]
    """in the message"""
    late: bool = False
    """Only a worker can see it: it reads the numbers."""
    replaced: bool = False
    """To a worker it is, first of all, not what was registered."""
    unseen: bool = False
    """A worker reads what was registered, and nothing that lies beside it."""


CASES = [
    Case("model", pickled, "unsafe-format", ("pytorch_model.bin", "safetensors")),
    Case("model", disguised_pickle, "unsafe-format", ("model.safetensors", "pickle"), replaced=True),
    Case("model", cut_model, "truncated-file", ("model.safetensors", "bytes"), replaced=True),
    Case("model", fewer_layers, "unknown-hook-point", ("resid_post.3", "resid_post.0", "resid_post.1"), replaced=True),
    Case("model", more_layers, "config-mismatch", ("config.json", "2000000 layers", "4"), replaced=True),
    Case("model", large_header, "too-large", ("model.safetensors", "81,000,001"), replaced=True),
    Case("model", embedded_adapter, "adapter-unsupported", ("adapter_config.json",), unseen=True),
    Case("brought", cut_shard, "truncated-file", ("00001.safetensors", "bytes"), replaced=True),
    Case("brought", not_finite, "not-finite", ("00001.safetensors", "row 277", "777", HOOK_POINT), late=True),
    Case("brought", wider, "wrong-width", (HOOK_POINT, "32", "16"), replaced=True),
    Case("brought", fewer_positions, "wrong-positions", ("1100", "1200"), replaced=True),
    Case("brought", other_documents, "wrong-positions", ("document",), late=True),
    Case("brought", other_hook_point, "unknown-hook-point", (HOOK_POINT, "mlp_out.1"), replaced=True),
    Case("brought", shard_gone, "shard-missing", ("00002.safetensors",)),
    Case("brought", link_to_elsewhere, "path-refused", ("roots",)),
    Case("brought", pickle_as_shard, "unsafe-format", ("00000.safetensors", "pickle"), replaced=True),
]


def name_of(case: Case) -> str:
    return f"{case.family}-{case.spoil.__name__}"


@pytest.mark.parametrize("case", [case for case in CASES if not case.late], ids=name_of)
def test_refused_at_once(families: Families, case: Case) -> None:
    folder = families.good(case.family, families.folder / f"early-{name_of(case)}")
    case.spoil(folder)
    before = families.dump()
    with pytest.raises(ApiError) as caught:
        families.client.register(case.family, name="v2", uri=families.uri(case.family, folder))
    assert (caught.value.status, caught.value.code) == (422, case.code)
    assert caught.value.title
    for word in case.words:
        assert word in caught.value.detail
    assert families.dump() == before


@pytest.mark.parametrize("case", [case for case in CASES if not case.unseen], ids=name_of)
def test_refused_by_the_worker(families: Families, service: Service, case: Case) -> None:
    family, name = case.family, f"late-{case.spoil.__name__}"
    folder = families.good(family, families.folder / f"late-{name_of(case)}")
    uri = families.uri(family, folder)
    before = families.dump()
    if case.late:
        case.spoil(folder)
    with service.idle_worker():
        run = families.client.register(family, name=name, uri=uri, parent="v1")["run"]
        if not case.late:
            case.spoil(folder)
    run = families.client.wait(run["id"], timeout=WAIT_SECONDS, interval=0.02)
    assert run["state"] == "failed", run
    assert run["error"]
    assert run["error"]["code"] == ("content-changed" if case.replaced else case.code), run["error"]
    assert run["error"]["title"]
    for word in ("registered",) if case.replaced else case.words:
        assert word in run["error"]["detail"]
    assert run["attempt"] == 1, "bad input is not tried again"
    after = families.dump()
    assert families.client.checkpoint(family, name)["state"] == "failed"
    _nothing_changed(before, after, run["id"])
    # The name is free again. Where the registration was of good content, which lies there again, a retry will do.
    shutil.rmtree(folder)
    families.good(family, folder)
    if case.late:
        service.judge(family, name, uri, parent="v1")
    else:
        families.client.retry(run["id"])
        assert families.client.wait(run["id"], timeout=WAIT_SECONDS, interval=0.02)["state"] == "succeeded"
    assert families.client.checkpoint(family, name)["state"] == "judged"
    assert unfinished(service.folder / "data") == []


def _nothing_changed(before: dict[str, list[dict[str, Any]]], after: dict[str, list[dict[str, Any]]], run: str) -> None:
    """All rows are as they were, but for those of the failed checkpoint: its own, its run's and the event of that."""
    for table in TABLES:
        name = table.__tablename__
        new = [row for row in after[name] if row not in before[name]]
        assert [row for row in after[name] if row in before[name]] == before[name], f"a row of {name} changed"
        if name == "run":
            assert [row["id"] for row in new] == [run]
        elif name == "event":
            assert [(row["type"], row["data"]["run"]) for row in new] == [("run.failed", run)]
        elif name == "checkpoint":
            assert [row["state"] for row in new] == ["failed"]
        else:
            assert new == [], f"new rows of {name}"


def refused(families: Families, status: int, code: str, *words: str, family: str = "brought", **body: Any) -> None:
    """A registration that is answered so, and changes nothing."""
    before = families.dump()
    with pytest.raises(ApiError) as caught:
        families.client.register(family, **body)
    assert (caught.value.status, caught.value.code) == (status, code)
    assert caught.value.document["type"]
    for word in words:
        assert word in caught.value.detail
    assert families.dump() == before


def test_a_path_outside_the_roots(families: Families, tmp_path: Path) -> None:
    outside = good_activations(tmp_path / "outside")
    for uri in (f"activations+file://{outside}", f"activations+file://{families.folder}/../../{outside.name}"):
        refused(families, 422, "path-refused", "FEATUREWATCH_ROOTS", name="v2", uri=uri)
    refused(families, 422, "path-refused", "FEATUREWATCH_ROOTS", family="model", name="v2", uri="file:///etc")
    link = families.folder / "link"
    link.symlink_to(outside)
    refused(families, 422, "path-refused", "FEATUREWATCH_ROOTS", name="v2", uri=f"activations+file://{link}")


def test_an_unknown_parent(families: Families) -> None:
    uri = f"activations+file://{good_activations(families.folder / 'orphan')}"
    refused(families, 422, "unknown-parent", "v0", name="v2", uri=uri, parent="v0")
    refused(families, 422, "unknown-parent", "v2", name="v2", uri=uri, parent="v2")
    refused(families, 404, "unknown-family", "nobody", family="nobody", name="v2", uri=uri)


def test_a_hook_point_that_the_family_has_not(families: Families) -> None:
    uri = f"activations+file://{good_activations(families.folder / 'elsewhere')}"
    two = ["mlp_out.1", "mlp_out.2"]
    refused(families, 422, "hook-point-not-in-family", HOOK_POINT, name="v2", uri=uri, hook_points=two)
    # Others may be compared: as many as the family has, or more of its kind. These activations hold none of them.
    for others in (["mlp_out.1"], [HOOK_POINT, "mlp_out.1"]):
        refused(families, 422, "unknown-hook-point", HOOK_POINT, name="v2", uri=uri, hook_points=others)


def test_a_name_used_twice(families: Families, service: Service) -> None:
    """The same content is the same registration, also from another folder; other content is a conflict."""
    folder = good_activations(families.folder / "twice", seed=1)
    uri = f"activations+file://{folder}"
    first = service.judge("brought", "twice", uri, parent="v1")
    before = families.dump()
    again = families.client.register("brought", name="twice", uri=uri, parent="v1")
    assert again["created"] is False
    assert again["run"]["id"] == first["id"]
    copy = shutil.copytree(folder, families.folder / "twice-copied")
    moved = families.client.register("brought", name="twice", uri=f"activations+file://{copy}", parent="v1")
    assert (moved["created"], moved["run"]["id"]) == (False, first["id"])
    assert families.dump() == before
    good_activations(folder, seed=2)
    refused(families, 409, "name-used", "twice", name="twice", uri=uri, parent="v1")
