"""Positions: exact ends of tokens in every kind of tokenizer, and alignment of one tokenizer to another's."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from featurewatch.workers.activations.positions import DocumentTokens, Positions, Reader, align, define
from featurewatch.workers.errors import RunError
from tests.unit.activations.tiny import TEXTS, TOKENIZERS, byte_level, metaspace, word_piece

READERS = {name: Reader(make(), None) for name, make in TOKENIZERS.items()}
TEXT = st.text(st.sampled_from("ab cdeTh.,;(){}\n\t éñ日本☃🙂'1290-"), max_size=60)


def read(name: str, text: str, limit: int = 10_000) -> DocumentTokens:
    return READERS[name].read([text], limit)[0]


@given(TEXT, st.sampled_from(sorted(TOKENIZERS)))
@settings(max_examples=150, deadline=None)
def test_ends_ascend_and_every_position_is_a_token_of_text(text: str, name: str) -> None:
    tokens = read(name, text)
    assert (np.diff(tokens.end) > 0).all()
    assert (np.diff(tokens.token) > 0).all()
    assert ((tokens.start >= 0) & (tokens.start < tokens.end) & (tokens.end <= len(text))).all()
    assert (tokens.token < len(tokens.ids)).all()


@given(TEXT)
@settings(max_examples=150, deadline=None)
def test_byte_level_ends_are_where_the_text_read_so_far_ends(text: str) -> None:
    """The slow way: decode the tokens up to each position, which must give exactly the text before it."""
    tokenizer = byte_level()
    tokens = read("byte_level", text)
    for token, end in zip(tokens.token, tokens.end, strict=True):
        decoded = tokenizer.decode(tokens.ids[: token + 1], clean_up_tokenization_spaces=False)
        assert decoded == text[:end]
    if text:
        assert tokens.end[-1] == len(text)


def test_white_space_at_a_tokens_end_belongs_to_it() -> None:
    """Byte-level tokenizers trim it from their offsets by default; the model has read it all the same."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.add_tokens([");\n"])
    text = "f();\nx"
    tokens = Reader(tokenizer, None).read([text], 100)[0]
    assert 5 in tokens.end
    assert 4 not in tokens.end


def test_lone_spaces_are_positions() -> None:
    tokens = read("byte_level", "a   b")
    assert tokens.end.tolist() == [1, 3, 5]  # "a", two spaces, " b"


@pytest.mark.parametrize("name", ["byte_level", "metaspace"])
def test_of_the_pieces_of_a_character_the_last_one_counts(name: str) -> None:
    tokens = read(name, "a☃b")
    at = int(tokens.token[list(tokens.end).index(2)])
    following = int(tokens.token[list(tokens.end).index(3)])
    assert following == at + 1  # nothing of the snowman comes after it
    assert len(tokens.ids) > len(tokens.end)


def test_a_token_that_reaches_into_the_next_character_ends_no_position() -> None:
    """Byte-level merges do not stop at characters: bytes [ab][ca][bc] of two characters abc abc."""
    tokenizer = byte_level()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    names = backend["model"]["vocab"]
    pieces = [tokenizer.convert_ids_to_tokens(token) for token in tokenizer("日日")["input_ids"]]
    first, middle, last = "".join(pieces)[:3]
    backend["model"]["merges"] = [[last, first], [first, middle], [middle, last]]
    for left, right in backend["model"]["merges"]:
        names.setdefault(left + right, len(names))
    crossing = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)))
    tokens = Reader(crossing, None).read(["日日"], 10)[0]
    assert len(tokens.ids) == 3
    assert tokens.end.tolist() == [2]
    assert tokens.token.tolist() == [2]


def test_a_letter_and_its_accent_are_one_position() -> None:
    """NFC joins them, and the tokenizer then gives the offsets of the letter alone."""
    tokens = read("byte_level", "xe\u0301x")
    assert 2 not in tokens.end
    assert 3 in tokens.end


def test_special_tokens_are_read_but_are_no_positions() -> None:
    tokens = read("word_piece", "the fox")
    assert tokens.ids[0] == 2
    assert tokens.ids[-1] == 3
    assert 0 not in tokens.token
    assert len(tokens.ids) - 1 not in tokens.token
    assert read("metaspace", "the fox").ids[0] == 1


@pytest.mark.parametrize("name", sorted(TOKENIZERS))
def test_documents_are_cut_at_the_limit(name: str) -> None:
    text = TEXTS[5]
    whole, cut = read(name, text), read(name, text, 20)
    assert len(whole.ids) > 20
    assert len(cut.ids) == 20
    assert (cut.end == whole.end[: len(cut.end)]).all()


def test_a_character_that_the_cut_goes_through_is_no_position() -> None:
    text = "ab🙂"
    whole = read("byte_level", text)
    pieces = len(whole.ids) - int(whole.token[list(whole.end).index(2)]) - 1
    assert pieces > 1
    for kept in range(1, pieces):
        assert 3 not in read("byte_level", text, len(whole.ids) - kept).end
    assert 3 in whole.end


def test_the_models_own_limit_wins() -> None:
    assert len(Reader(byte_level(), 7).read([TEXTS[0]], 100)[0].ids) == 7


@given(TEXT, st.sampled_from(sorted(TOKENIZERS)), st.sampled_from(sorted(TOKENIZERS)), st.integers(0, 3))
@settings(max_examples=150, deadline=None)
def test_alignment_is_what_the_slow_search_finds(text: str, first: str, second: str, skip: int) -> None:
    defining, other = read(first, text), read(second, text)
    ends = defining.end[skip:]
    expected = [next((t for t, e in zip(other.token, other.end, strict=True) if e == end), -1) for end in ends]
    assert align(other, ends).tolist() == expected


def test_different_tokenizers_share_the_ends_of_words() -> None:
    text = "the lazy dog sleeps"
    ends = read("byte_level", text).end
    found = align(read("metaspace", text), ends)
    for word_end in (3, 8, 12, 19):
        assert found[list(ends).index(word_end)] >= 0


def test_alignment_with_itself_is_complete() -> None:
    for name in TOKENIZERS:
        for text in TEXTS:
            tokens = read(name, text)
            assert align(tokens, tokens.end).tolist() == tokens.token.tolist()


def test_a_finer_tokenizer_may_take_more_tokens_to_the_last_position() -> None:
    coarse, fine = Reader(byte_level(400), None), Reader(byte_level(260), None)
    text, limit = TEXTS[5], 20
    last = int(coarse.read([text], limit)[0].end[-1])
    assert fine.read([text], limit)[0].end[-1] < last
    tokens = fine.read_up_to(text, limit, last)
    assert limit < len(tokens.ids) <= 2 * limit
    assert tokens.end[-1] >= last or len(tokens.ids) == 2 * limit
    same = coarse.read_up_to(text, limit, last)
    assert (same.ids == coarse.read([text], limit)[0].ids).all()


def test_reading_further_keeps_the_special_tokens_at_the_end() -> None:
    reader = Reader(word_piece(), None)
    text = TEXTS[5]
    last = int(reader.read([text], 30)[0].end[-1])
    tokens = reader.read_up_to(text, 20, last)
    assert tokens.ids[-1] == 3
    assert tokens.end[-1] == last


def test_definition_skips_the_first_tokens_of_each_document() -> None:
    tokens = [read("byte_level", text) for text in TEXTS]
    positions = define(tokens, [10, 20, 30, 40, 50, 60], 2)
    assert len(positions) == sum(max(0, len(t.end) - 2) for t in tokens)
    rows = positions.by_document()
    assert sorted(rows) == [10, 20, 30, 40, 50, 60]
    assert (positions.end[rows[20]] == tokens[1].end[2:]).all()
    assert (positions.start[rows[20]] == tokens[1].start[2:]).all()


def test_a_corpus_without_positions_is_refused() -> None:
    with pytest.raises(RunError) as caught:
        define([read("byte_level", "")], [0], 1)
    assert caught.value.code == "no-positions"


def test_positions_survive_the_disk(tmp_path: Path) -> None:
    positions = define([read("metaspace", text) for text in TEXTS], list(range(6)), 1)
    positions.save(tmp_path / "positions.safetensors")
    again = Positions.load(tmp_path / "positions.safetensors")
    assert again.digest == positions.digest
    assert (again.start == positions.start).all()
    moved = Positions(positions.document, positions.start, positions.end + 1)
    assert moved.digest != positions.digest


def test_a_tokenizer_without_offsets_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(RunError) as caught:
        Reader(Slow(), None)
    assert caught.value.code == "tokenizer-not-fast"


def test_reading_leaves_the_checkpoints_tokenizer_as_it_is() -> None:
    tokenizer = metaspace()
    before = tokenizer.backend_tokenizer.to_str()
    Reader(tokenizer, None).read(["the fox"], 2)
    assert tokenizer.backend_tokenizer.to_str() == before
