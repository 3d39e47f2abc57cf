"""The unembedding of a model, read from its files: the tokens that a direction of the residual stream promotes.

Logit lens (nostalgebraist 2020): if only the final norm followed, a direction r would add (r * gain) W_U to the logits,
up to the norm's division, which is the same for all tokens. A LayerNorm first subtracts the mean of r. The mean over
the vocabulary is subtracted from the logits, because softmax ignores it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig

from featurewatch.service.checkpoints import tensorfile
from featurewatch.workers.activations.models.adapters import WEIGHTS, check_adapter
from featurewatch.workers.activations.sources.fetch import weight_files
from featurewatch.workers.activations.tensorfiles import map_tensor, read_header, torch_dtype
from featurewatch.workers.errors import RunError

# Architectures (model_type) with just a final norm and a head after the layers, by kind of norm.
_RMS = (
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "granite", "olmo2", "olmo3", "phi3",
    "smollm3", "glm", "glm4", "ministral",
)  # fmt: skip
_RMS_PLUS_ONE = ("gemma", "gemma2", "gemma3", "gemma3_text")  # multiply by 1 + weight
_LAYER_NORM = ("gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_bigcode", "phi", "stablelm", "starcoder2", "falcon", "bloom")
_HEADS = ("lm_head.weight", "embed_out.weight", "language_model.lm_head.weight")
_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
_NORMS = ("norm.weight", "ln_f.weight", "final_layer_norm.weight", "final_layernorm.weight")
_BODIES = (
    "", "model.", "transformer.", "gpt_neox.", "language_model.", "model.language_model.", "language_model.model.",
)  # fmt: skip

VOCABULARY_BLOCK = 8192


class _Stored(NamedTuple):
    file: Path
    entry: tensorfile.Tensor


@dataclass(frozen=True)
class Unembedding:
    """W_U of a model, memory-mapped, with the gain of the final norm."""

    path: Path
    entry: tensorfile.Tensor
    gain: Tensor
    """[d] float32"""
    centred: bool
    """Whether the final norm subtracts the mean"""

    @property
    def vocabulary(self) -> int:
        """Rows of the matrix. Some models have more rows than tokens."""
        return self.entry.shape[0]

    def blocks(self, size: int = VOCABULARY_BLOCK) -> Iterator[Tensor]:
        """Rows of the matrix, float32 [b, d], in order."""
        mapped, dtype = map_tensor(self.path, self.entry), torch_dtype(self.entry)
        assert dtype is not None
        for begin in range(0, self.vocabulary, size):
            yield torch.from_numpy(np.array(mapped[begin : begin + size])).view(dtype).float()


class Tops(NamedTuple):
    """The tokens whose logits change most: ids int64 and values float32, [n, k] each, largest change first."""

    promoted: Tensor
    promoted_values: Tensor
    demoted: Tensor
    demoted_values: Tensor


def read_unembedding(folder: Path, adapter: Path | None = None) -> Unembedding:
    """The unembedding of a Hugging Face folder, from its tensor files, without loading the model.

    adapter: folder of a PEFT adapter. If the adapter replaces the whole head, that head is used. If it changes the
    head, the tied embedding or the final norm otherwise, raises RunError `no-unembedding`, as for unsupported
    architectures. Also raises the RunErrors of `weight_files` and `check_adapter`.
    """
    config = _config(folder)
    kind, tied = str(config.model_type), _tied(config)
    if kind not in (*_RMS, *_RMS_PLUS_ONE, *_LAYER_NORM):
        raise _none(f"The path from the layers to the logits of a {kind} model is unknown.")
    tensors = {name: _Stored(file, entry) for file in weight_files(folder) for name, entry in read_header(file).items()}
    embedding = _first(tensors, tuple(body + name for body in _BODIES for name in _EMBEDDINGS))
    name = embedding if tied and embedding else _first(tensors, _HEADS)
    norm = _first(tensors, tuple(body + name for body in _BODIES for name in _NORMS))
    if name is None or norm is None:
        raise _none(f"{folder.name} has no {'head' if name is None else 'final norm'}.")
    head = tensors[name]
    if adapter is not None:
        head = _adapted(adapter, head, name, norm)
    gain = _vector(tensors[norm]) + (1.0 if kind in _RMS_PLUS_ONE else 0.0)
    if len(head.entry.shape) != 2 or head.entry.shape[1] != len(gain) or torch_dtype(head.entry) is None:
        raise _none(
            f"{name} is {head.entry.dtype} {list(head.entry.shape)}, but the final norm has {len(gain)} values."
        )
    return Unembedding(head.file, head.entry, gain, kind in _LAYER_NORM)


@torch.no_grad()
def promoted(
    rows: Tensor,
    unembedding: Unembedding,
    k: int,
    *,
    tokens: int | None = None,
    check: Callable[[], None] = lambda: None,
) -> Tops:
    """The k tokens that each direction promotes most and demotes most, or fewer if the vocabulary is smaller.

    rows: [n, d] float32 in the model's own basis, normalised here. tokens: number of valid ids; larger ids are ignored.
    `check` is called for each block of the vocabulary, and may raise.
    """
    directions = rows - rows.mean(1, keepdim=True) if unembedding.centred else rows
    norm = rows.norm(dim=1, keepdim=True).clamp_min(1e-30)
    directions = directions / norm * unembedding.gain.to(rows.device)
    count = min(tokens or unembedding.vocabulary, unembedding.vocabulary)
    k, begin = min(k, count), 0
    high = low = (rows.new_zeros(len(rows), 0), torch.zeros(len(rows), 0, dtype=torch.int64, device=rows.device))
    total = rows.new_zeros(len(rows), dtype=torch.float64)
    for block in unembedding.blocks():
        check()
        logits = directions @ block[: count - begin].to(rows.device).T
        total += logits.sum(1, dtype=torch.float64)
        ids = torch.arange(begin, begin + logits.shape[1], device=rows.device).expand_as(logits)
        high, low = _best(high, logits, ids, k, largest=True), _best(low, logits, ids, k, largest=False)
        begin += len(block)
        if begin >= count:
            break
    mean = (total / count).float()[:, None]
    return Tops(high[1], high[0] - mean, low[1], low[0] - mean)


def token_texts(tokenizer: Any, ids: list[int]) -> dict[int, str]:
    """Id -> text, including a leading space. Incomplete UTF-8 sequences show as �."""
    # Some tokenizers drop the leading space of a single token, so it is decoded after another one.
    before = tokenizer.encode("a", add_special_tokens=False)[-1:]
    skip = len(_decoded(tokenizer, before))
    return {token: _decoded(tokenizer, [*before, token])[skip:] for token in ids}


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False, skip_special_tokens=False))


def _best(best: tuple[Tensor, Tensor], logits: Tensor, ids: Tensor, k: int, *, largest: bool) -> tuple[Tensor, Tensor]:
    """The k best of the previous best and of a block: values and ids."""
    values, places = logits.topk(min(k, logits.shape[1]), 1, largest=largest)
    values = torch.cat([best[0], values], 1)
    ids = torch.cat([best[1], ids.gather(1, places)], 1)
    values, order = values.topk(min(k, values.shape[1]), 1, largest=largest)
    return values, ids.gather(1, order)


def _config(folder: Path) -> Any:
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _none(f"config.json of {folder.name} could not be read: {error}") from error


def _tied(config: Any) -> bool:
    text = config.get_text_config()
    return bool(getattr(config, "tie_word_embeddings", False) and getattr(text, "tie_word_embeddings", True))


def _adapted(folder: Path, head: _Stored, head_name: str, norm: str) -> _Stored:
    """The head with an adapter applied: the adapter's own head if it has a whole one."""
    check_adapter(folder)
    header = read_header(folder / WEIGHTS)
    named = {name.removeprefix("base_model.model."): name for name in header}
    whole = _first(named, _HEADS)
    # Adapters of a model without a head name the norm relative to the body.
    norms = {norm.removesuffix("weight"), norm.split(".")[-2] + "."}
    heads = {name.split(".")[-2] for name in (head_name, *_HEADS)}
    for name in named:
        changes_head = not heads.isdisjoint(name.split("."))
        if name.startswith(tuple(norms)) or (whole is None and changes_head):
            raise _none(f"The adapter changes {name}, which requires loading the model.")
    return head if whole is None else _Stored(folder / WEIGHTS, header[named[whole]])


def _vector(stored: _Stored) -> Tensor:
    dtype = torch_dtype(stored.entry)
    if dtype is None or len(stored.entry.shape) != 1:
        raise _none(f"The final norm is {stored.entry.dtype} {list(stored.entry.shape)}.")
    return torch.from_numpy(np.array(map_tensor(*stored))).view(dtype).float()


def _first(names: Any, wanted: tuple[str, ...]) -> str | None:
    return next((name for name in wanted if name in names), None)


def _none(reason: str) -> RunError:
    return RunError("no-unembedding", reason)
