"""A short fine-tune of a checkpoint on text, which changes all weights but should lose no feature."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from featurewatch.workers.activations.models import loading
from featurewatch.workers.activations.models.adapters import merge_adapter
from featurewatch.workers.activations.sources import sealed
from featurewatch.workers.activations.sources.fetch import locate
from featurewatch.workers.activations.tensorfiles import write_text
from featurewatch.workers.errors import RunError

log = structlog.get_logger("featurewatch.worker")

COPIES = 4
"""Copies of the weights during training: weights, gradients, and Adam's two moments."""
LOSS_DOCUMENTS = 32
"""Maximum documents for measuring a loss."""
SUMMARY = "finetune.json"


@dataclass(frozen=True)
class Training:
    """Settings: causal language-model loss, AdamW without weight decay, gradients clipped to norm 1, no dropout,
    float32."""

    steps: int
    learning_rate: float
    batch_documents: int
    context_length: int
    """Tokens at which documents are truncated"""
    seed: int


def fine_tune(
    uri: str,
    adapter: str | None,
    training: Training,
    texts: tuple[Sequence[str], Sequence[str]],
    out: Path,
    *,
    roots: tuple[Path, ...],
    device: str,
    cache_dir: Path,
    on_progress: Callable[..., None] = lambda fraction, /, **detail: None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Train a checkpoint on `texts[0]` and save it at `out`, a Hugging Face folder, unless it was finished before.

    Returns the mean loss per token before and after, on `texts[0]` and on the held-out `texts[1]` (at most
    LOSS_DOCUMENTS of each). `check` is called after each batch and may raise. Raises the RunErrors of `load_model`, and
    `no-causal-head`, `no-text`, `training-diverged`.
    """
    if (losses := _finished(out)) is not None:
        return losses
    check()
    folder = loading.locate_model(uri, roots=roots, cache_dir=cache_dir)
    loading.check_memory(folder, device, torch.float32, copies=COPIES)
    model = loading.load_causal(folder)
    if adapter:
        merge_adapter(model.base_model, locate(adapter, roots, cache_dir))
    model.to(device).eval()  # eval: no dropout, so equal seeds give equal weights
    tokenizer = loading.load_tokenizer(folder)
    length = min(training.context_length, loading.max_tokens(model.base_model) or training.context_length)
    options = {"truncation": True, "max_length": length}
    train, held_out = ([tokenizer(text, **options)["input_ids"] for text in part] for part in texts)
    train, held_out = ([ids for ids in part if len(ids) > 1] for part in (train, held_out))
    if not train or not held_out:
        raise RunError("no-text", "The probe corpus has too few documents to train on half of them.")
    _require_causal(model, train[0])

    parts, size = [part[:LOSS_DOCUMENTS] for part in (train, held_out)], training.batch_documents
    # A training step, forward and backward, costs three times as much as measuring the loss.
    work, done = 2 * sum(map(len, parts)) + 3 * training.steps * size, 0

    def advance(documents: int, **detail: Any) -> None:
        nonlocal done
        done += documents
        on_progress(done / work, **detail)
        check()

    before = [_loss(model, part, size, advance) for part in parts]
    _train(model, train, training, advance)
    after = [_loss(model, part, size, advance) for part in parts]
    if not all(map(math.isfinite, after)):
        raise RunError("training-diverged", "The loss is not finite after the fine-tune. Use a smaller learning rate.")
    names = ("loss_before", "held_out_loss_before", "loss_after", "held_out_loss_after")
    summary = {name: round(value, 5) for name, value in zip(names, (*before, *after), strict=True)}
    shutil.rmtree(out, ignore_errors=True)  # left by an interrupted attempt
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_text(out / SUMMARY, json.dumps(summary))
    sealed.seal(out)
    return summary


def _finished(out: Path) -> dict[str, float] | None:
    """The losses of a fine-tune that an earlier attempt finished; None if there is none or it is damaged."""
    if not (out / SUMMARY).is_file():
        return None
    if not sealed.is_intact(out):
        log.warning("a fine-tuned model is damaged or incomplete; training it again", folder=out.name)
        return None
    losses: dict[str, float] = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    return losses


def _require_causal(model: Any, ids: list[int]) -> None:
    """Refuse an encoder with a causal head: its first output depends on later tokens."""
    other = [*ids[:-1], ids[0] if ids[0] != ids[-1] else ids[0] + 1]
    with torch.no_grad():
        first, second = (model(input_ids=torch.tensor([x], device=model.device)).logits[0, 0] for x in (ids, other))
    if not torch.allclose(first, second, atol=1e-4, rtol=1e-4):
        raise RunError(
            "no-causal-head", "The model reads text in both directions, so it has no causal loss to train on."
        )


def _train(model: Any, documents: list[list[int]], training: Training, advance: Callable[..., None]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.learning_rate, weight_decay=0.0)
    generator = torch.Generator().manual_seed(training.seed)
    order: list[int] = []
    for step in range(training.steps):
        while len(order) < training.batch_documents:
            order += torch.randperm(len(documents), generator=generator).tolist()
        batch, order = order[: training.batch_documents], order[training.batch_documents :]
        optimizer.zero_grad(set_to_none=True)
        loss = _forward(model, [documents[i] for i in batch])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        advance(3 * len(batch), step=step + 1, steps=training.steps, loss=round(float(loss.detach()), 4))


def _loss(model: Any, documents: list[list[int]], size: int, advance: Callable[..., None]) -> float:
    """Mean loss per token."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(documents), size):
            part = documents[start : start + size]
            count = sum(len(ids) - 1 for ids in part)
            total, tokens = total + float(_forward(model, part)) * count, tokens + count
            advance(len(part))
    return total / tokens


def _forward(model: Any, batch: list[list[int]]) -> Tensor:
    """Mean next-token loss, excluding padding."""
    padded = pad_sequence([torch.tensor(ids) for ids in batch], batch_first=True).to(model.device)
    lengths = torch.tensor([len(ids) for ids in batch], device=model.device)
    mask = torch.arange(padded.shape[1], device=model.device) < lengths[:, None]
    loss: Tensor = model(input_ids=padded, attention_mask=mask.long(), labels=padded.where(mask, -100)).loss
    return loss
