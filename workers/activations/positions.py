"""Positions: the points of the probe corpus at which models with different tokenizers can be compared.

A position is a character offset in a document at which a token *ends*. Two models can be compared there if both have a
token that ends there, because both have then read exactly the same text. A family's first checkpoint defines its
positions, and all others are aligned to them.
"""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Encoding, Tokenizer

from featurewatch.workers.activations.tensorfiles import load_arrays, write_tensors
from featurewatch.workers.errors import RunError

_ENCODE_BATCH = 256


@dataclass(frozen=True)
class Positions:
    """A family's positions, grouped by document with ascending offsets.

    document, start, end: int64 [n]. Characters `start` to `end` of the document are the token that ends there.
    """

    document: np.ndarray
    start: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.document)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of documents and end offsets. Checkpoints with equal digests can be compared row by row."""
        return hashlib.sha256(self.document.tobytes() + b"|" + self.end.tobytes()).hexdigest()

    def save(self, path: Path) -> None:
        """Write a safetensors file with `document`, `start` and `end`."""
        write_tensors(path, {name: torch.from_numpy(getattr(self, name)) for name in ("document", "start", "end")})

    @classmethod
    def load(cls, path: Path) -> "Positions":
        """Read a file of `save`, or `documents.safetensors` of a harvest. Raises RunError `manifest-invalid`."""
        arrays = load_arrays(path, {"document": "I64", "start": "I64", "end": "I64"})
        if len(arrays) != 3 or len({len(array) for array in arrays.values()}) != 1:
            raise RunError("manifest-invalid", f"{path.name} must contain document, start and end of equal length.")
        return cls(**arrays)

    def by_document(self) -> dict[int, slice]:
        """Rows of each document. Documents must be contiguous, as in a harvest."""
        if not len(self):
            return {}
        firsts = np.concatenate([[0], np.flatnonzero(np.diff(self.document)) + 1, [len(self)]])
        return {int(self.document[first]): slice(int(first), int(end)) for first, end in pairwise(firsts)}


class DocumentTokens(NamedTuple):
    """One tokenized document: `ids` int64 [t] including special tokens, and where its tokens end.

    token, start, end: int64 [p] with strictly ascending ends; `token` is the index in `ids` of the token that ends
    there. Of the pieces of a multi-byte character, only the last one ends a position, if it ends with the character.
    """

    ids: np.ndarray
    token: np.ndarray
    start: np.ndarray
    end: np.ndarray


class Reader:
    """Tokenizes documents with exact character offsets. Not thread-safe."""

    def __init__(self, tokenizer: Any, max_tokens: int | None) -> None:
        """tokenizer: a fast transformers tokenizer. max_tokens: the model's longest input; None for no limit.

        Raises RunError `tokenizer-not-fast`.
        """
        if not getattr(tokenizer, "is_fast", False):
            raise RunError("tokenizer-not-fast", "The tokenizer has no character offsets. Add a tokenizer.json.")
        self.max_tokens = max_tokens
        self._backend = untrimmed(tokenizer.backend_tokenizer)

    def read(self, texts: Sequence[str], limit: int, check: Callable[[], None] = lambda: None) -> list[DocumentTokens]:
        """Tokenize documents, truncated at `limit` tokens or at the model's own limit."""
        limit = min(limit, self.max_tokens or limit)
        self._backend.no_padding()
        self._backend.enable_truncation(limit, direction="right")
        read = []
        for begin in range(0, len(texts), _ENCODE_BATCH):
            check()
            batch = list(texts[begin : begin + _ENCODE_BATCH])
            encodings = self._backend.encode_batch(batch)
            read += [_document_tokens(text, encoding) for text, encoding in zip(batch, encodings, strict=True)]
        return read

    def read_up_to(self, text: str, limit: int, last_end: int) -> DocumentTokens:
        """Tokenize one document, truncated at `limit` tokens, or at up to twice that if needed to reach `last_end`.

        This keeps the ends of long documents with a tokenizer that is finer than the family's first one. With the same
        tokenizer nothing changes, because its first `limit` tokens define the last position.
        """
        tokens = self.read([text], limit)[0]
        if len(tokens.ids) < limit or (len(tokens.end) and tokens.end[-1] >= last_end):
            return tokens
        longer = self.read([text], 2 * limit)[0]
        if not len(longer.end) or longer.end[-1] <= last_end:
            return longer
        needed = int(longer.token[np.searchsorted(longer.end, last_end)]) + 1
        trailing = len(longer.ids) - 1 - int(longer.token[-1])  # special tokens at the end
        return self.read([text], needed + trailing)[0]


def untrimmed(backend: Tokenizer) -> Tokenizer:
    """A copy whose offsets include white space, which byte-level BPE trims by default, even at the *end* of a token."""
    return Tokenizer.from_str(json.dumps(_without_trimming(json.loads(backend.to_str()))))


def _without_trimming(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: False if key == "trim_offsets" else _without_trimming(value) for key, value in part.items()}
    return [_without_trimming(item) for item in part] if isinstance(part, list) else part


def _document_tokens(text: str, encoding: Encoding) -> DocumentTokens:
    spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
    start, end = spans[:, 0], spans[:, 1].copy()
    if not text.isascii():
        end = np.array([_past_joined(text, int(offset)) for offset in end], np.int64)
    texts = np.flatnonzero((np.array(encoding.special_tokens_mask, np.int64) == 0) & (end > start))
    # A token completes its last character if no later token begins before its end. The pieces of a multi-byte
    # character overlap, and a piece may extend from one character into the next.
    behind = np.append(start[texts][1:], _cut_at(encoding, len(text)))
    whole = np.minimum.accumulate(behind[::-1])[::-1] >= end[texts]
    token = texts[whole]
    return DocumentTokens(np.array(encoding.ids, np.int64), token, start[token], end[token])


def _cut_at(encoding: Encoding, length: int) -> int:
    """Start of the first token that truncation removed; `length` if it removed none."""
    if not encoding.overflowing:
        return length
    rest = encoding.overflowing[0]
    pairs = zip(rest.offsets, rest.special_tokens_mask, strict=True)
    return next((span[0] for span, special in pairs if not special), length)


def _past_joined(text: str, offset: int) -> int:
    """The offset, moved past characters that a normaliser may have merged into the one before it.

    NFC merges a letter and its accent, and tokenizers then reports the offsets of the letter alone.
    """
    if offset == 0:
        return 0
    while offset < len(text) and (
        unicodedata.category(text[offset]).startswith("M") or "\u1160" <= text[offset] <= "\u11ff"
    ):
        offset += 1
    return offset


def define(tokens: Sequence[DocumentTokens], documents: Sequence[int], skip_tokens: int) -> Positions:
    """Positions of a family from its first checkpoint: all ends except the first `skip_tokens` of each document.

    documents: the id of each entry of `tokens`. Raises RunError `no-positions`.
    """
    ends = [document.end[skip_tokens:] for document in tokens]
    counts = [len(end) for end in ends]
    if not sum(counts):
        raise RunError("no-positions", "The probe corpus has no positions: its documents are empty or too short.")
    return Positions(
        np.repeat(np.array(documents, np.int64), counts),
        np.concatenate([document.start[skip_tokens:] for document in tokens]),
        np.concatenate(ends),
    )


def align(tokens: DocumentTokens, ends: np.ndarray) -> np.ndarray:
    """Index in `tokens.ids` of the token that ends at each offset of `ends` [p]; -1 if there is none."""
    if not len(tokens.end):
        return np.full(len(ends), -1, np.int64)
    at = np.searchsorted(tokens.end, ends).clip(max=len(tokens.end) - 1)
    return np.where(tokens.end[at] == ends, tokens.token[at], -1)
