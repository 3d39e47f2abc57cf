"""Reading a contrast set with a model: one position per row, at given hook points.

last     the last token of the text, or of the prompt that the chat template makes of it (where an answer would begin)
answer   the first token of the row's answer, which follows the text
mean     the mean over the text's tokens, excluding the template and special tokens
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from featurewatch.workers.activations.models.hooks import capture, choose_hook_points, drop_later_layers
from featurewatch.workers.activations.models.loading import max_tokens
from featurewatch.workers.activations.positions import untrimmed
from featurewatch.workers.errors import RunError

Position = Literal["last", "answer", "mean"]
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Row:
    """The parts of a contrast row that a model reads."""

    text: str
    answer: str | None


class Prompt(NamedTuple):
    """A tokenized row, and the first and last token to read; the result is the mean over this range."""

    ids: list[int]
    first: int
    last: int


def prompts(
    rows: Sequence[Row], tokenizer: Any, position: Position, *, template: bool, limit: int | None
) -> list[Prompt]:
    """Tokenize rows. template: wrap each text as a user message in the tokenizer's chat template, if it has one.

    limit: the model's longest input. Raises RunError `tokenizer-not-fast`, `contrast-too-long`, `contrast-empty-row`,
    `chat-template`.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise RunError("tokenizer-not-fast", "The tokenizer has no character offsets. Add a tokenizer.json.")
    backend = untrimmed(tokenizer.backend_tokenizer)
    backend.no_padding()
    backend.no_truncation()
    chat = template and bool(getattr(tokenizer, "chat_template", None))
    tokenized = []
    for number, row in enumerate(rows):
        before, after = _around(row.text, tokenizer) if chat else ("", "")
        prompt = before + row.text + after
        encoded = backend.encode(prompt + (row.answer or ""), add_special_tokens=not chat)
        span = (len(before), len(before) + len(row.text))
        if position == "answer":
            span = (len(prompt), len(prompt) + len(row.answer or ""))
        tokenized.append(_prompt(encoded, position, span, number))
    longest = max(range(len(tokenized)), key=lambda i: len(tokenized[i].ids))
    count = len(tokenized[longest].ids)
    if limit is not None and count > limit:
        raise RunError("contrast-too-long", f"row {longest + 1} has {count} tokens; the model's limit is {limit}.")
    return tokenized


def _around(text: str, tokenizer: Any) -> tuple[str, str]:
    """What the chat template puts before and after a user message, up to the answer."""
    mark = "\u2402"  # a character that no template contains: templates may strip or change the text itself
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    before, separator, after = whole.partition(mark)
    if not separator:
        raise RunError("chat-template", "The chat template does not show the user's message. Use `template: false`.")
    return before, after


def _prompt(encoded: Encoding, position: Position, span: tuple[int, int], number: int) -> Prompt:
    ids, offsets = list(encoded.ids), encoded.offsets
    if position == "last":
        span = (0, max((end for _, end in offsets), default=0))
    inside = [i for i, (start, end) in enumerate(offsets) if end > max(start, span[0]) and start < span[1]]
    if not inside:
        raise RunError("contrast-empty-row", f"row {number + 1} has no token to read.")
    if position == "last":
        return Prompt(ids, inside[-1], inside[-1])
    return Prompt(ids, inside[0], inside[-1] if position == "mean" else inside[0])


@torch.no_grad()
def read_prompts(
    model: nn.Module,
    hook_points: list[str],
    prompts: Sequence[Prompt],
    *,
    on_progress: Callable[[float], None] = lambda fraction: None,
    check: Callable[[], None] = lambda: None,
) -> dict[str, Tensor]:
    """Activations at each prompt's position: hook point -> float32 [rows, d_model]. Raises RunError `not-finite`.

    Removes the layers after the last hook point from the model.
    """
    points = choose_hook_points(model, hook_points)
    drop_later_layers(model, points)
    device = next(model.parameters()).device
    read: dict[str, list[Tensor]] = {point.name: [] for point in points}
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i].ids))
    done = 0
    while done < len(order):
        check()
        size = max(1, BATCH_TOKENS // len(prompts[order[done]].ids))
        batch = [prompts[i] for i in order[done : done + size]]
        ids, mask, mean = _padded(batch)
        with capture(points) as seen:
            model(input_ids=ids.to(device), attention_mask=mask.to(device))
        for name, values in seen.items():
            read[name].append(torch.einsum("bt,btd->bd", mean.to(device), values.float()).cpu())
        done += len(batch)
        on_progress(done / len(order))
    back = torch.from_numpy(np.argsort(order))
    result = {name: torch.cat(parts)[back] for name, parts in read.items()}
    for name, values in result.items():
        if not bool(values.isfinite().all()):
            raise RunError("not-finite", f"Activations at {name} contain NaN or infinity.")
    return result


def _padded(batch: Sequence[Prompt]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and weights of the positions to read: [b, t] each."""
    texts = [torch.tensor(prompt.ids) for prompt in batch]
    ids = pad_sequence(texts, batch_first=True)
    mean = torch.zeros(ids.shape)
    for row, prompt in enumerate(batch):
        mean[row, prompt.first : prompt.last + 1] = 1 / (prompt.last + 1 - prompt.first)
    return ids, pad_sequence([torch.ones_like(text) for text in texts], batch_first=True), mean


def open_prompts(
    model: nn.Module, tokenizer: Any, rows: Sequence[Row], position: Position, *, template: bool
) -> list[Prompt]:
    """`prompts` with the model's own limit."""
    return prompts(rows, tokenizer, position, template=template, limit=max_tokens(model))
