"""Loading checkpoints: what is loaded, and everything that is refused before it can do harm."""

import json
import shutil
from functools import reduce
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from featurewatch.workers.activations.models import gguf as conversion
from featurewatch.workers.activations.models.gguf import convert_gguf
from featurewatch.workers.activations.models.loading import compute_dtype, load_model, locate_model, max_tokens
from featurewatch.workers.activations.sources import fetch, sealed
from featurewatch.workers.activations.sources.fetch import fingerprint, locate
from featurewatch.workers.errors import RunError
from tests.unit.activations.tiny import byte_level, in_place, make_model, save_checkpoint, weights_of, zero

IDS = torch.arange(1, 20)[None]


def load(uri: str, tmp_path: Path, *roots: Path, dtype: torch.dtype = torch.float32) -> nn.Module:
    model, _ = load_model(uri, None, roots=roots, device="cpu", dtype=dtype, cache_dir=tmp_path / "cache")
    return model


def refused(uri: str, tmp_path: Path, code: str, *words: str) -> None:
    with pytest.raises(RunError) as caught:
        load(uri, tmp_path, tmp_path)
    assert caught.value.code == code, caught.value
    for word in words:
        assert word in caught.value.detail


@pytest.fixture
def folder(tmp_path: Path, llama_folder: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(llama_folder, tmp_path / "llama"))


def test_the_body_is_loaded_without_the_head(tmp_path: Path, folder: Path) -> None:
    model = load(f"file://{folder}", tmp_path, tmp_path)
    assert not any("lm_head" in name for name, _ in model.named_modules())
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    expected = AutoModel.from_pretrained(folder)(IDS).last_hidden_state
    torch.testing.assert_close(model(IDS).last_hidden_state, expected)


def test_the_dtype_is_the_one_asked_for(tmp_path: Path, folder: Path) -> None:
    model = load(f"file://{folder}", tmp_path, tmp_path, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_compute_dtype_is_bfloat16_only_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for native in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert compute_dtype("cpu") == (torch.bfloat16 if native else torch.float32)
    assert compute_dtype("mps") == torch.float32


def test_a_sharded_checkpoint_is_loaded(tmp_path: Path, folder: Path) -> None:
    parts = tmp_path / "parts"
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(parts, max_shard_size="50KB")
    byte_level().save_pretrained(parts)
    assert (parts / "model.safetensors.index.json").exists()
    torch.testing.assert_close(
        load(f"file://{parts}", tmp_path, tmp_path)(IDS).last_hidden_state,
        load(f"file://{folder}", tmp_path, tmp_path)(IDS).last_hidden_state,
    )


def test_a_pickle_is_refused_by_its_name(tmp_path: Path, folder: Path) -> None:
    torch.save(weights_of(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    refused(f"file://{folder}", tmp_path, "unsafe-format", "pytorch_model.bin", "safetensors")


def test_a_pickle_that_is_called_safetensors_is_refused(tmp_path: Path, folder: Path) -> None:
    torch.save(weights_of(folder / "model.safetensors"), folder / "model.safetensors")
    refused(f"file://{folder}", tmp_path, "unsafe-format", "model.safetensors")


def test_an_index_that_names_pickles_or_other_folders_is_refused(tmp_path: Path, folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    for name, code in [
        ("weights.bin", "unsafe-format"),
        ("../llama/weights.safetensors", "path-escapes"),
        ("model-00002.safetensors", "shard-missing"),
    ]:
        index.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
        refused(f"file://{folder}", tmp_path, code, name)
    index.write_text("{}")
    refused(f"file://{folder}", tmp_path, "truncated-file", index.name)


@pytest.mark.parametrize("kept", [0, 100, -1])
def test_truncated_weights_are_refused(tmp_path: Path, folder: Path, kept: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    refused(f"file://{folder}", tmp_path, "truncated-file", "model.safetensors")


def test_weights_that_lack_are_not_made_up(tmp_path: Path, folder: Path) -> None:
    file = folder / "model.safetensors"
    weights = weights_of(file)
    del weights["model.layers.2.mlp.up_proj.weight"]
    save_file(weights, file, {"format": "pt"})
    refused(f"file://{folder}", tmp_path, "weights-missing", "layers.2.mlp.up_proj.weight")


def test_weights_of_another_shape_are_refused(tmp_path: Path, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    refused(f"file://{folder}", tmp_path, "model-load-failed", "llama")


def test_code_of_a_checkpoint_is_never_run(tmp_path: Path, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    refused(f"file://{folder}", tmp_path, "remote-code")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_without_tokenizer_is_refused(tmp_path: Path, folder: Path) -> None:
    for file in folder.glob("token*"):
        file.unlink()
    refused(f"file://{folder}", tmp_path, "tokenizer-missing")


def test_a_damaged_tokenizer_is_refused(tmp_path: Path, folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": {}}')
    refused(f"file://{folder}", tmp_path, "tokenizer-missing")


def test_the_tokenizer_is_the_one_in_the_folder_not_one_made_up_for_the_architecture(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "qwen2", "qwen2")
    _, tokenizer = load_model(
        f"file://{folder}", None, roots=(tmp_path,), device="cpu", dtype=torch.float32, cache_dir=tmp_path
    )
    assert json.loads(tokenizer.backend_tokenizer.to_str()) == json.loads((folder / "tokenizer.json").read_text())


def test_places_that_hold_no_model(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"x")
    refused(f"file://{tmp_path}/nothing", tmp_path, "model-missing")
    refused(f"file://{tmp_path}/empty", tmp_path, "model-missing", "config.json")
    refused(f"file://{tmp_path}/weights.bin", tmp_path, "unsafe-format")
    (folder / "model.safetensors").unlink()
    refused(f"file://{folder}", tmp_path, "weights-missing")


@pytest.mark.parametrize(
    "uri",
    [
        "http://169.254.169.254/latest",
        "simplecache::s3://bucket/x",
        "local:///etc",
        "zip://x::file:///etc",
        "/etc",
        "hf://a/b/c",
        "hf://../x",
    ],
)
def test_uris_that_are_not_read(tmp_path: Path, uri: str) -> None:
    refused(uri, tmp_path, "uri-unsupported")


def test_folders_outside_the_roots_are_refused(tmp_path: Path, folder: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    for uri in (f"file://{folder}", f"file://{inside}/../llama", "file:///etc"):
        with pytest.raises(RunError) as caught:
            load(uri, tmp_path, inside)
        assert caught.value.code == "path-refused"


def test_a_link_out_of_the_roots_is_refused(tmp_path: Path, folder: Path) -> None:
    inside = Path(shutil.copytree(folder, tmp_path / "inside" / "model"))
    (inside / "model.safetensors").unlink()
    (inside / "model.safetensors").symlink_to(folder / "model.safetensors")
    with pytest.raises(RunError) as caught:
        load(f"file://{inside}", tmp_path, tmp_path / "inside")
    assert caught.value.code == "path-refused"
    load(f"file://{inside}", tmp_path, tmp_path)  # with both places under a root it is one model


def test_more_memory_than_there_is_says_how_much_it_takes(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featurewatch.workers.activations.models.loading._available_memory", lambda: 1000)
    refused(f"file://{folder}", tmp_path, "out-of-memory", "GB")


def test_a_store_is_copied_once_and_without_pickles(tmp_path: Path, folder: Path) -> None:
    fs = fsspec.filesystem("memory")
    for file in folder.iterdir():
        fs.put_file(str(file), f"/bucket/model/{file.name}")
    fs.pipe_file("/bucket/model/pytorch_model.bin", b"\x80\x04.")
    path = locate("memory://bucket/model", (), tmp_path)
    fetched = {file.name for file in path.iterdir()}
    assert fetched == {file.name for file in folder.iterdir()} | {sealed.DIGESTS}
    stamp = path.stat().st_mtime_ns
    assert locate("memory://bucket/model", (), tmp_path) == path
    assert path.stat().st_mtime_ns == stamp
    fs.pipe_file("/bucket/model/config.json", fs.cat_file("/bucket/model/config.json") + b" ")
    assert locate("memory://bucket/model", (), tmp_path) != path
    torch.testing.assert_close(
        load("memory://bucket/model", tmp_path)(IDS).last_hidden_state,
        load(f"file://{folder}", tmp_path, tmp_path)(IDS).last_hidden_state,
    )
    assert locate("activations+memory://bucket/model", (), tmp_path).is_dir()
    refused("memory://bucket/none", tmp_path, "model-unavailable")


def test_a_fetched_copy_that_is_damaged_is_fetched_again(tmp_path: Path, folder: Path) -> None:
    fs = fsspec.filesystem("memory")
    for file in folder.iterdir():
        fs.put_file(str(file), f"/bucket/damaged/{file.name}")
    path = locate("memory://bucket/damaged", (), tmp_path)
    in_place(path / "model.safetensors", zero)
    assert locate("memory://bucket/damaged", (), tmp_path) == path
    (path / "tokenizer.json").unlink()
    (path / "adapter_config.json").write_text("{}")
    assert locate("memory://bucket/damaged", (), tmp_path) == path
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert {file.name: file.read_bytes() for file in path.iterdir() if file.name != sealed.DIGESTS} == whole
    assert [place.name for place in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("when", ["before its end", "killed before it was noticed"])
def test_a_store_that_changes_while_it_is_fetched_leaves_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    fs = fsspec.filesystem("memory")
    for file in folder.iterdir():
        fs.put_file(str(file), f"/bucket/changing/{file.name}")
    looks, look = 0, fetch.listing_digest

    def looked(*arguments: Any) -> str:
        nonlocal looks
        looks += 1
        if looks == 2:  # the files are fetched
            fs.pipe_file("/bucket/changing/config.json", b"{}")
            if when.startswith("killed"):
                raise KeyboardInterrupt
        return look(*arguments)

    monkeypatch.setattr(fetch, "listing_digest", looked)
    with pytest.raises((RunError, KeyboardInterrupt)) as caught:
        locate("memory://bucket/changing", (), tmp_path)
    if isinstance(caught.value, RunError):
        assert caught.value.code == "content-changed"
    assert not list((tmp_path / "fetched").iterdir())


def test_a_fingerprint_changes_with_the_files(folder: Path) -> None:
    before = fingerprint(folder)
    assert fingerprint(folder) == before
    (folder / "notes.txt").write_text("no part of the model")
    assert fingerprint(folder) == before
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes())
    assert fingerprint(folder) != before


def test_the_longest_input_is_known_for_learnt_positions() -> None:
    assert max_tokens(make_model("gpt2").base_model) == 256
    assert max_tokens(make_model("bert").base_model) == 256
    assert max_tokens(make_model("distilbert")) == 256
    assert max_tokens(make_model("llama").base_model) is None


def write_gguf(file: Path) -> LlamaForCausalLM:
    """A Llama of one layer as a GGUF file in float32, with a small byte-level tokenizer; returns the model it holds."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(5)
    model = LlamaForCausalLM(config).eval()
    file.parent.mkdir(exist_ok=True)
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(300)
    backend = json.loads(byte_level(300).backend_tokenizer.to_str())["model"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = sorted(backend["vocab"], key=backend["vocab"].get)
    writer.add_token_list([*tokens, *(f"<unused{number}>" for number in range(300 - len(tokens)))])
    writer.add_token_types([1] * 300)
    writer.add_token_merges([" ".join(merge) for merge in backend["merges"]])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }  # fmt: skip
    for key, value in model.state_dict().items():
        array = value.numpy()
        heads = {"q_proj": 4, "k_proj": 2}.get(key.split(".")[-2])
        if heads:  # llama.cpp keeps the two halves of a rotation beside each other
            array = array.reshape(heads, 2, 4, 32).swapaxes(1, 2).reshape(array.shape)
        named = reduce(lambda text, pair: text.replace(*pair), names.items(), key)
        writer.add_tensor(named, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def test_a_gguf_file_is_converted_once_and_holds_the_same_model(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    expected = write_gguf(file)
    model = load(f"file://{file}", tmp_path, tmp_path)
    torch.testing.assert_close(model(IDS).last_hidden_state, expected.model(IDS).last_hidden_state)
    folder = convert_gguf(file, tmp_path / "cache")
    whole = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(whole(IDS).logits, expected(IDS).logits)
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    assert locate_model(f"file://{file}", roots=(tmp_path,), cache_dir=tmp_path / "cache") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
    assert not list(folder.parent.glob(".*"))


def test_a_gguf_file_that_is_overwritten_while_it_is_converted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's name is the digest of what was hashed; it must not hold the model that came later."""
    file, convert = tmp_path / "tiny.gguf", conversion._convert
    write_gguf(file)

    def overwritten(source: Path, folder: Path) -> None:
        data = bytearray(source.read_bytes())
        data[-8:] = bytes(8)
        source.write_bytes(data)
        convert(source, folder)

    monkeypatch.setattr(conversion, "_convert", overwritten)
    with pytest.raises(RunError) as caught:
        convert_gguf(file, tmp_path / "cache")
    assert caught.value.code == "content-changed"
    assert not list((tmp_path / "cache" / "gguf").iterdir())


def test_a_converted_model_that_is_damaged_is_converted_again(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    folder = convert_gguf(file, tmp_path / "cache")
    whole = (folder / "model.safetensors").read_bytes()
    in_place(folder / "model.safetensors", zero)
    assert convert_gguf(file, tmp_path / "cache") == folder
    assert (folder / "model.safetensors").read_bytes() == whole


def test_a_damaged_gguf_file_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file)
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(f"file://{file}", tmp_path, "truncated-file", "tiny.gguf")
    file.write_bytes(b"PK" + whole[2:])
    refused(f"file://{file}", tmp_path, "truncated-file", "tiny.gguf")
    assert not list((tmp_path / "cache").glob("gguf/*"))


def test_a_bert_without_pooler_is_whole(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "bert", "bert", tokenizer="word_piece")
    assert not any("pooler" in key for key in weights_of(folder / "model.safetensors"))
    assert load(f"file://{folder}", tmp_path, tmp_path) is not None
