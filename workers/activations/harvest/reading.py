"""Reading the probe corpus with a model: tokens, groups of documents, batches and forward passes."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from featurewatch.workers.activations.corpus import Document
from featurewatch.workers.activations.models.hooks import HookPoint, capture
from featurewatch.workers.activations.positions import DocumentTokens, Positions, Reader, align, define
from featurewatch.workers.errors import RunError


class TokenizedCorpus(NamedTuple):
    """The corpus as one model reads it.

    rows: the rows of each document among the positions. token: int64 [positions], index of the token in its document's
    `ids`, -1 if none of this model's tokens ends there.
    """

    tokens: list[DocumentTokens]
    positions: Positions
    rows: list[slice]
    token: np.ndarray


class Group(NamedTuple):
    """Whole documents that share a shard: indices `documents` in the corpus, rows `begin` to `end` of the positions."""

    number: int
    documents: range
    begin: int
    end: int


class Buffers:
    """The contents of one group's shards: hook point -> activations [rows, d_model] and their norms [rows].

    Rows where none of this model's tokens ends stay 0.
    """

    def __init__(self, rows: int, widths: dict[str, int], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.activations = {name: torch.zeros(rows, width, dtype=dtype) for name, width in widths.items()}
        # Explicit: while another thread loads a model in bfloat16, that is torch's default in the whole process.
        self.norms = {name: torch.zeros(rows, dtype=torch.float32) for name in widths}


def tokenize_corpus(
    documents: Sequence[Document],
    reader: Reader,
    *,
    context_length: int,
    skip_tokens: int,
    positions: Positions | None,
    check: Callable[[], None],
) -> TokenizedCorpus:
    """Tokenize the corpus and align it to the family's positions, which None defines.

    Raises RunError `no-positions`, `wrong-positions`.
    """
    texts = [document.text for document in documents]
    ids = [document.id for document in documents]
    tokens = reader.read(texts, context_length, check)
    aligned = positions if positions is not None else define(tokens, ids, skip_tokens)
    where = aligned.by_document()
    rows = [where.get(number, slice(0, 0)) for number in ids]
    begins = [part.start for part in rows if part.stop > part.start]
    if sum(part.stop - part.start for part in rows) != len(aligned) or begins != sorted(begins):
        raise RunError("wrong-positions", "The family's positions do not belong to this probe corpus.")
    token = np.full(len(aligned), -1, np.int64)
    for index, part in enumerate(rows):
        if part.stop > part.start:
            ends = aligned.end[part]
            if not (len(tokens[index].end) and tokens[index].end[-1] >= ends[-1]):
                tokens[index] = reader.read_up_to(texts[index], context_length, int(ends[-1]))
            token[part] = align(tokens[index], ends)
    return TokenizedCorpus(tokens, aligned, rows, token)


def groups(corpus: TokenizedCorpus, size: int) -> Iterator[Group]:
    """Consecutive groups of at least `size` positions (the last may be smaller) that cover all positions."""
    order = [index for index, rows in enumerate(corpus.rows) if rows.stop > rows.start]
    first, begin, number = 0, 0, 0
    for place, index in enumerate(order):
        end = corpus.rows[index].stop
        if end - begin >= size or place == len(order) - 1:
            yield Group(number, range(order[first], index + 1), begin, end)
            first, begin, number = place + 1, end, number + 1


def batches(corpus: TokenizedCorpus, group: Group, batch_tokens: int) -> Iterator[list[int]]:
    """Batches of a group's documents, longest first, of up to `batch_tokens` tokens including padding."""
    wanted = [index for index in group.documents if (corpus.token[corpus.rows[index]] >= 0).any()]
    wanted.sort(key=lambda index: (-len(corpus.tokens[index].ids), index))
    while wanted:
        count = max(1, batch_tokens // len(corpus.tokens[wanted[0]].ids))
        yield wanted[:count]
        wanted = wanted[count:]


@torch.no_grad()
def read_batch(
    model: nn.Module, points: list[HookPoint], corpus: TokenizedCorpus, group: Group, batch: list[int], *, into: Buffers
) -> int:
    """Run one forward pass over the documents `batch` and fill their rows of `into`.

    Returns the number of positions of these documents. Raises RunError `not-finite`.
    """
    device = next(model.parameters()).device
    texts = [torch.from_numpy(corpus.tokens[index].ids) for index in batch]
    ids = pad_sequence(texts, batch_first=True)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    picked, targets = [], []
    for place, index in enumerate(batch):
        part = corpus.rows[index]
        there = np.flatnonzero(corpus.token[part] >= 0)
        picked.append(place * ids.shape[1] + corpus.token[part][there])
        targets.append(part.start - group.begin + there)
    pick = torch.from_numpy(np.concatenate(picked)).to(device)
    target = torch.from_numpy(np.concatenate(targets))
    with capture(points) as seen:
        model(input_ids=ids.to(device), attention_mask=mask.to(device))
    for name, values in seen.items():
        rows = values.flatten(0, 1)[pick]
        norms = rows.float().norm(dim=1)
        stored = rows.to("cpu", into.dtype)
        if not (norms.isfinite().all() and stored.isfinite().all()):
            ids_there = ", ".join(str(corpus.positions.document[corpus.rows[index].start]) for index in batch[:5])
            raise RunError(
                "not-finite",
                f"Activations at {name} contain NaN or infinity as {into.dtype}, in one of the documents {ids_there}.",
            )
        into.activations[name][target] = stored
        into.norms[name][target] = norms.cpu()
    return sum(corpus.rows[index].stop - corpus.rows[index].start for index in batch)
