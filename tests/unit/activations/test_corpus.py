"""The probe corpus: the same documents every time, from safe places only."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurewatch.workers.activations.corpus import corpus_digest, cut, load_corpus, load_documents, save_documents
from featurewatch.workers.errors import RunError


def test_the_builtin_corpus_is_large_enough_and_has_no_document_twice() -> None:
    documents = load_corpus(None, None, ())
    texts = [document.text for document in documents]
    assert [document.id for document in documents] == list(range(len(documents)))
    assert sum(map(len, texts)) > 600_000
    assert len(set(texts)) == len(texts)
    assert max(map(len, texts)) <= 1024


def test_the_builtin_corpus_is_the_same_in_another_process() -> None:
    program = (
        "from featurewatch.workers.activations import corpus as c;"
        " print(c.corpus_digest(c.load_corpus('builtin:python-docs', 300, ())))"
    )
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == corpus_digest(load_corpus(None, 300, ()))


def test_of_many_documents_evenly_spaced_ones_are_taken() -> None:
    everything, some = load_corpus(None, None, ()), load_corpus(None, 100, ())
    assert [document.id for document in some] == list(range(100))
    places = [[d.text for d in everything].index(document.text) for document in some]
    assert places == sorted(places)
    assert places[-1] > 0.95 * len(everything)


def test_jsonl_rows_are_documents_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    texts = ["one", "two " * 2000, "  three"]
    file.write_text("\n".join(json.dumps({"text": text, "other": 1}) for text in texts) + "\n\n")
    assert [d.text for d in load_corpus(f"file://{file}", None, (tmp_path,))] == texts


def test_a_folder_is_read_in_order_and_long_texts_are_cut(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("A sentence of some words. " * 100)
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n')
    (tmp_path / "c.bin").write_bytes(b"\xff\x00")
    documents = load_corpus(f"file://{tmp_path}", None, (tmp_path,), context_length=64)
    assert documents[0].text == "first"
    assert len(documents) > 8
    assert all(len(document.text) <= 256 and document.text.endswith(".") for document in documents[1:])


@given(st.text(st.sampled_from("ab c.\n"), max_size=400), st.integers(8, 60))
def test_cutting_loses_nothing_but_white_space(text: str, size: int) -> None:
    pieces = list(cut(text, size))
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < len(piece) <= size for piece in pieces)


def test_documents_survive_the_disk(tmp_path: Path) -> None:
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "日本\u2028語 \ud800 ☃\nline"}) + "\n")
    documents = load_corpus(f"file://{tmp_path / 'c.jsonl'}", None, (tmp_path,)) + load_corpus(None, 5, ())
    save_documents(documents, tmp_path / "documents.jsonl")
    again = load_documents(tmp_path / "documents.jsonl")
    assert again == documents
    assert corpus_digest(again) == corpus_digest(documents)
    assert corpus_digest(again[:-1]) != corpus_digest(documents)


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("file:///etc/passwd", "corpus-refused"),
        ("file://relative.txt", "corpus-refused"),
        ("https://example.org/x.txt", "corpus-refused"),
        ("builtin:other", "corpus-refused"),
        ("file://{root}/nothing.txt", "corpus-missing"),
        ("file://{root}/empty.txt", "corpus-empty"),
        ("file://{root}/latin.txt", "corpus-invalid"),
        ("file://{root}/rows.jsonl", "corpus-invalid"),
        ("file://{root}/numbers.jsonl", "corpus-invalid"),
        ("file://{root}/link.txt", "corpus-refused"),
    ],
)
def test_what_is_refused(tmp_path: Path, uri: str, code: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("a secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    (root / "empty.txt").write_text(" \n")
    (root / "latin.txt").write_bytes("é".encode("latin-1"))
    (root / "rows.jsonl").write_text('{"text": "x"}\n{"txt": "y"}\n')
    (root / "numbers.jsonl").write_text('{"text": 4}\n')
    with pytest.raises(RunError) as caught:
        load_corpus(uri.format(root=root), None, (root,))
    assert caught.value.code == code


def test_a_link_in_a_folder_that_leads_out_of_the_roots_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.txt").write_text("a secret")
    (root / "link.txt").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(RunError) as caught:
        load_corpus(f"file://{root}", None, (root,))
    assert caught.value.code == "corpus-refused"
