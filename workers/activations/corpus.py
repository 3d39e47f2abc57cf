"""The probe corpus: the fixed documents that every checkpoint of a family reads."""

import hashlib
import importlib
import inspect
import json
import pydoc_data.topics
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import transformers.utils.logging  # noqa: F401 - gives logging.Logger methods, which are part of the default corpus

from featurewatch.service.kit.paths import PathRefusedError, resolve_under_roots
from featurewatch.workers.activations.tensorfiles import write_text
from featurewatch.workers.errors import RunError

DEFAULT = "builtin:python-docs"
_CHARACTERS_PER_TOKEN = 4
_MIN_CHARACTERS = 40
_SPACE = re.compile(r"\s*")
# Well-documented modules that are part of every Python build and have no side effects when imported.
_MODULES = """
argparse array ast asyncio base64 bisect calendar
codecs collections collections.abc concurrent.futures configparser contextlib copy
csv dataclasses datetime decimal difflib doctest email.message
enum fileinput fnmatch fractions functools gettext glob
hashlib heapq html.parser http.client http.cookies http.server imaplib
inspect io ipaddress itertools json linecache locale
logging logging.handlers mailbox math mimetypes multiprocessing.pool operator
optparse os os.path pathlib pdb pickle platform
plistlib poplib pprint queue random re sched
secrets selectors shelve shlex shutil signal smtplib
socket socketserver statistics string struct subprocess tarfile
tempfile textwrap threading timeit tokenize traceback types
unittest unittest.mock urllib.parse urllib.request uuid warnings
wave weakref xml.dom.minidom xml.etree.ElementTree xmlrpc.client zipfile
""".split()  # noqa: SIM905 - a page of quoted names is harder to read


@dataclass(frozen=True)
class Document:
    """One document of the probe corpus. `id` counts from 0 and identifies it in every artifact of the family."""

    id: int
    text: str


def load_corpus(
    uri: str | None, max_documents: int | None, roots: tuple[Path, ...], *, context_length: int = 256
) -> list[Document]:
    """The documents of a corpus, always the same ones in the same order.

    uri: `file:///x.jsonl` (a document `{"text": ...}` per line), `file:///x.txt` (split into documents of about
    `context_length` tokens), a folder of such files, or `builtin:python-docs` (the default): Python's language
    reference and docstrings. If there are more than `max_documents`, evenly spaced ones are used. Raises RunError
    `corpus-refused`, `corpus-missing`, `corpus-invalid`, `corpus-empty`.
    """
    size = context_length * _CHARACTERS_PER_TOKEN
    if uri in (None, "", DEFAULT):
        pieces = (piece for text in _python_docs() for piece in cut(text, size))
        texts = list(dict.fromkeys(piece for piece in pieces if len(piece) >= _MIN_CHARACTERS))
    elif uri.startswith("file:"):
        texts = list(_read_files(uri, roots, size))
    else:
        raise RunError(
            "corpus-refused", f"Unsupported corpus {uri!r}. Use file:///x.jsonl, a .txt file, a folder, or {DEFAULT}."
        )
    if not texts:
        raise RunError("corpus-empty", f"{uri} contains no text.")
    if max_documents is not None and len(texts) > max_documents:
        texts = [texts[i * len(texts) // max_documents] for i in range(max_documents)]
    return [Document(number, text) for number, text in enumerate(texts)]


def cut(text: str, size: int) -> Iterator[str]:
    """Split a text into pieces of at most `size` characters, after a paragraph, else a sentence, else a word."""
    text, start = text.strip(), 0
    # Slicing off the rest each time would be quadratic in the length of the text.
    while len(text) - start > size:
        window = text[start : start + size]
        end = max((match.end() for match in re.finditer(r"\n\s*\n", window)), default=0)
        if end < size // 2:
            end = max((match.end() for match in re.finditer(r"[.!?]\s+", window)), default=end)
        if end < size // 2:
            end = max((match.end() for match in re.finditer(r"\s+", window)), default=end)
        end = end if end >= size // 4 else size
        yield window[:end].rstrip()
        space = _SPACE.match(text, start + end)
        start = space.end() if space else start + end
    if start < len(text):
        yield text[start:]


def save_documents(documents: Iterable[Document], path: Path) -> None:
    """Write documents as JSONL, with `{"id": ..., "text": ...}` per line."""
    write_text(path, "".join(json.dumps({"id": d.id, "text": d.text}, ensure_ascii=True) + "\n" for d in documents))


def load_documents(path: Path) -> list[Document]:
    """Read documents that `save_documents` wrote."""
    with path.open(encoding="utf-8") as file:
        return [Document(row["id"], row["text"]) for row in map(json.loads, file)]


def corpus_digest(documents: Iterable[Document]) -> str:
    """SHA-256 over ids and texts."""
    digest = hashlib.sha256()
    for document in documents:
        raw = document.text.encode("utf-8", "surrogatepass")
        digest.update(f"{document.id}:{len(raw)}:".encode() + raw)
    return digest.hexdigest()


def _read_files(uri: str, roots: tuple[Path, ...], size: int) -> Iterator[str]:
    try:
        path = resolve_under_roots(uri, roots)
        if not path.exists():
            raise RunError("corpus-missing", f"{uri} does not exist on the worker.")
        files = sorted(f for f in path.rglob("*") if f.suffix in (".txt", ".jsonl")) if path.is_dir() else [path]
        for file in files:
            resolve_under_roots(f"file://{quote(str(file))}", roots)
    except PathRefusedError as error:
        raise RunError("corpus-refused", str(error)) from error
    for file in files:
        try:
            if file.suffix == ".jsonl":
                yield from _read_jsonl(file)
            else:
                yield from cut(file.read_text(encoding="utf-8"), size)
        except UnicodeDecodeError as error:
            raise RunError("corpus-invalid", f"{file.name} is not UTF-8: {error}.") from error


def _read_jsonl(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise RunError("corpus-invalid", f'{file.name}, line {number}: expected {{"text": ...}}.') from error
            if not isinstance(text, str):
                raise RunError("corpus-invalid", f"{file.name}, line {number}: `text` is not a string.")
            if text.strip():
                yield text


def _python_docs() -> Iterator[str]:
    topics = pydoc_data.topics.topics
    yield from (topics[name] for name in sorted(topics))
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # not included in this Python build
        yield inspect.getdoc(module) or ""
        for _, member in sorted(vars(module).items()):
            if getattr(member, "__module__", None) == name and (inspect.isclass(member) or inspect.isfunction(member)):
                yield _docstrings(member)


def _docstrings(member: object) -> str:
    """Docstring of a function, or of a class and its methods."""
    parts = [inspect.getdoc(member)]
    if inspect.isclass(member):
        methods = sorted(vars(member).items())
        parts += [inspect.getdoc(value) for key, value in methods if not key.startswith("_") and callable(value)]
    return "\n\n".join(part for part in parts if part)
