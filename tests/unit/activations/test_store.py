"""Activation folders: reading rows, and every fault of a precomputed folder refused by its name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from featurewatch.workers.activations.store import ActivationSet, check_finite, open_activations
from featurewatch.workers.activations.tensorfiles import load_arrays, read_header, write_tensors
from featurewatch.workers.errors import RunError
from tests.unit.activations.tiny import write_activations

HOOK_POINTS = ["resid_post.1", "mlp_out.2"]
ARRAYS = {
    "resid_post.1": torch.randn(100, 8, generator=torch.Generator().manual_seed(0)),
    "mlp_out.2": torch.randn(100, 6, generator=torch.Generator().manual_seed(1)),
}


def opened(folder: Path, **expected: Any) -> ActivationSet:
    return open_activations(folder, hook_points=HOOK_POINTS, **expected)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_activations(tmp_path / "brought", ARRAYS)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def refused(folder: Path, code: str, *words: str, **expected: Any) -> None:
    with pytest.raises(RunError) as caught:
        opened(folder, **expected)
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in caught.value.detail


def test_a_whole_folder_opens(folder: Path) -> None:
    activations = opened(folder, expected_positions=100, expected_widths={"resid_post.1": 8})
    assert activations.hook_points == {"resid_post.1": 8, "mlp_out.2": 6}
    assert activations.n_positions == 100
    assert activations.model == "precomputed"
    assert activations.document.tolist() == [row // 10 for row in range(100)]
    assert activations.valid.all()


def test_the_mask_of_valid_positions_is_read(tmp_path: Path) -> None:
    valid = np.arange(100) % 3 > 0
    folder = write_activations(tmp_path / "masked", ARRAYS, valid=valid)
    assert (opened(folder).valid == valid).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_slices_and_rows_are_bit_for_bit_in_each_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_activations(tmp_path / "typed", {name: array.to(dtype) for name, array in ARRAYS.items()})
    activations = opened(folder)
    assert activations.read("mlp_out.2", slice(0)).dtype == dtype
    for begin, end in [(0, 100), (0, 40), (39, 41), (80, 100), (99, 100), (50, 50), (95, 200)]:
        rows = activations.read("mlp_out.2", slice(begin, end))
        assert rows.dtype == dtype
        assert torch.equal(rows, ARRAYS["mlp_out.2"][begin:end].to(dtype))
    chosen = np.array([0, 0, 7, 39, 40, 41, 79, 80, 99])
    assert torch.equal(activations.read("mlp_out.2", chosen), ARRAYS["mlp_out.2"][chosen].to(dtype))


@given(st.lists(st.integers(0, 99), max_size=60).map(sorted))
@settings(max_examples=60, deadline=None)
def test_any_sorted_rows_are_read(tmp_path_factory: pytest.TempPathFactory, rows: list[int]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-sorted-rows"
    if not folder.exists():
        write_activations(folder, ARRAYS, shard=7)
    read = opened(folder).read("resid_post.1", np.array(rows, np.int64))
    assert torch.equal(read, ARRAYS["resid_post.1"][rows])


def test_what_is_read_can_be_changed_without_harm(folder: Path) -> None:
    activations = opened(folder)
    activations.read("resid_post.1", slice(0, 10)).zero_()
    assert torch.equal(activations.read("resid_post.1", slice(0, 10)), ARRAYS["resid_post.1"][:10])


def test_rows_must_be_sorted_and_there(folder: Path) -> None:
    activations = opened(folder)
    with pytest.raises(ValueError, match="sorted"):
        activations.read("resid_post.1", np.array([3, 2]))
    with pytest.raises(IndexError):
        activations.read("resid_post.1", np.array([3, 100]))
    with pytest.raises(IndexError):
        activations.read("resid_post.1", np.array([-1, 3]))
    with pytest.raises(ValueError, match="step"):
        activations.read("resid_post.1", slice(0, 10, 2))


def test_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    refused(folder, "manifest-missing")


def test_a_manifest_that_is_no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"format": ')
    refused(folder, "manifest-invalid")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m.update(format="something/9"), "format"),
        (lambda m: m.pop("positions"), "positions"),
        (lambda m: m.update(positions="100"), "positions"),
        (lambda m: m.update(positions=True), "positions"),
        (lambda m: m.update(positions=0), "positions"),
        (lambda m: m.update(hook_points={}), "hook_points"),
        (lambda m: m.update(hook_points=["resid_post.1"]), "hook_points"),
        (lambda m: m["hook_points"]["mlp_out.2"].update(d_model=-3), "d_model"),
        (lambda m: m["hook_points"]["mlp_out.2"].update(shards=[]), "shards"),
        (lambda m: m["hook_points"]["mlp_out.2"].update(shards=[4]), "shards"),
        (lambda m: m.pop("documents"), "documents"),
        (lambda m: m.pop("model"), "model"),
    ],
)
def test_a_manifest_with_a_fault_is_refused_by_the_field(folder: Path, change: Any, word: str) -> None:
    edit_manifest(folder, change)
    refused(folder, "manifest-invalid", word)


def test_a_hook_point_without_activations(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["hook_points"].pop("mlp_out.2"))
    refused(folder, "unknown-hook-point", "mlp_out.2", "resid_post.1")


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "x\0.safetensors"]
)
def test_a_shard_outside_the_folder(folder: Path, name: str) -> None:
    save_file({"activations": ARRAYS["mlp_out.2"]}, folder.parent / "outside.safetensors")
    edit_manifest(folder, lambda m: m["hook_points"]["mlp_out.2"].update(shards=[name]))
    refused(folder, "path-escapes")


def test_a_link_out_of_the_folder(folder: Path) -> None:
    save_file({"activations": ARRAYS["mlp_out.2"]}, folder.parent / "outside.safetensors")
    (folder / "link.safetensors").symlink_to(folder.parent / "outside.safetensors")
    edit_manifest(folder, lambda m: m["hook_points"]["mlp_out.2"].update(shards=["link.safetensors"]))
    refused(folder, "path-escapes", "link.safetensors")


def test_documents_outside_the_folder(folder: Path) -> None:
    edit_manifest(folder, lambda m: m.update(documents="../documents.safetensors"))
    refused(folder, "path-escapes")


def test_a_pickle_by_its_name(folder: Path) -> None:
    torch.save(ARRAYS["mlp_out.2"], folder / "mlp.pt")
    edit_manifest(folder, lambda m: m["hook_points"]["mlp_out.2"].update(shards=["mlp.pt"]))
    refused(folder, "unsafe-format", "mlp.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_under_another_name(folder: Path, zipped: bool) -> None:
    torch.save(ARRAYS["mlp_out.2"], folder / "mlp.safetensors", _use_new_zipfile_serialization=zipped)
    edit_manifest(folder, lambda m: m["hook_points"]["mlp_out.2"].update(shards=["mlp.safetensors"]))
    refused(folder, "unsafe-format", "mlp.safetensors")


def test_a_missing_shard(folder: Path) -> None:
    (folder / "mlp_out.2-00001.safetensors").unlink()
    refused(folder, "shard-missing", "mlp_out.2-00001.safetensors")


def test_missing_documents(folder: Path) -> None:
    (folder / "documents.safetensors").unlink()
    refused(folder, "shard-missing", "documents.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 8, 40, -1])
def test_a_truncated_shard_at_any_length(folder: Path, kept: int) -> None:
    file = folder / "resid_post.1-00002.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(folder, "truncated-file", file.name)


def test_bytes_behind_the_tensors(folder: Path) -> None:
    file = folder / "resid_post.1-00002.safetensors"
    file.write_bytes(file.read_bytes() + b"more")
    refused(folder, "truncated-file", file.name)


def test_a_header_whose_offsets_do_not_fit_the_shape(folder: Path) -> None:
    file = folder / "resid_post.1-00002.safetensors"
    file.write_bytes(file.read_bytes().replace(b"[20,8]", b"[21,8]"))
    refused(folder, "truncated-file", file.name)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_bytes_make_the_header_reader_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    file = tmp_path_factory.getbasetemp() / "any.safetensors"
    for content in (raw, len(raw).to_bytes(8, "little") + raw):
        file.write_bytes(content)
        try:
            read_header(file)
        except RunError as error:
            assert error.code in ("truncated-file", "unsafe-format")


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.float8_e4m3fn])
def test_a_type_that_is_no_activation(folder: Path, dtype: torch.dtype) -> None:
    save_file({"activations": ARRAYS["mlp_out.2"].to(dtype)}, folder / "odd.safetensors")
    edit_manifest(folder, lambda m: m["hook_points"]["mlp_out.2"].update(shards=["odd.safetensors"]))
    refused(folder, "wrong-dtype", "odd.safetensors")


def test_shards_of_different_types(folder: Path) -> None:
    save_file({"activations": ARRAYS["mlp_out.2"][40:80].bfloat16()}, folder / "mlp_out.2-00001.safetensors")
    refused(folder, "wrong-dtype", "mlp_out.2")


def test_documents_of_another_type(folder: Path) -> None:
    save_file({"document": torch.zeros(100, dtype=torch.int32)}, folder / "documents.safetensors")
    refused(folder, "wrong-dtype", "I32")


def test_a_shard_without_the_tensor(folder: Path) -> None:
    save_file({"acts": ARRAYS["mlp_out.2"]}, folder / "odd.safetensors")
    edit_manifest(folder, lambda m: m["hook_points"]["mlp_out.2"].update(shards=["odd.safetensors"]))
    refused(folder, "manifest-invalid", "activations")


def test_a_shard_of_another_width_than_its_manifest(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["hook_points"]["mlp_out.2"].update(d_model=7))
    refused(folder, "wrong-width", "mlp_out.2", "7")


def test_a_tensor_of_one_dimension(folder: Path) -> None:
    save_file({"activations": torch.zeros(600)}, folder / "flat.safetensors")
    edit_manifest(folder, lambda m: m["hook_points"]["mlp_out.2"].update(shards=["flat.safetensors"]))
    refused(folder, "wrong-width", "[600]")


def test_another_width_than_expected(folder: Path) -> None:
    refused(folder, "wrong-width", "8", "16", expected_widths={"resid_post.1": 16})


def test_another_number_of_positions_than_the_family(folder: Path) -> None:
    refused(folder, "wrong-positions", "100", "99", expected_positions=99)


def test_shards_that_hold_another_number_of_rows(folder: Path) -> None:
    edit_manifest(folder, lambda m: m["hook_points"]["mlp_out.2"]["shards"].pop())
    refused(folder, "wrong-positions", "80", "100")


def test_documents_of_another_number(folder: Path) -> None:
    save_file({"document": torch.zeros(99, dtype=torch.int64)}, folder / "documents.safetensors")
    refused(folder, "wrong-positions", "99", "100")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_value_that_is_not_finite_is_named(tmp_path: Path, value: float, dtype: torch.dtype) -> None:
    array = ARRAYS["mlp_out.2"].clone()
    array[57, 3] = value
    array[90, 0] = value
    arrays = {name: a.to(dtype) for name, a in {**ARRAYS, "mlp_out.2": array}.items()}
    activations = opened(write_activations(tmp_path / "bad", arrays))
    with pytest.raises(RunError) as caught:
        check_finite(activations)
    assert caught.value.code == "not-finite"
    for word in ("mlp_out.2-00001.safetensors", "row 17", "position 57"):
        assert word in caught.value.detail


def test_checking_reports_its_progress(folder: Path) -> None:
    shares: list[float] = []
    check_finite(opened(folder), shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_tensors_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.safetensors"
    write_tensors(file, {"a": torch.arange(4)})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("featurewatch.workers.activations.tensorfiles.os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_tensors(file, {"a": torch.arange(5)})
    assert load_arrays(file, {"a": "I64"})["a"].tolist() == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == [file]
