"""The probe corpus: the fixed documents on which every checkpoint of a family is read."""

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

from featurewatch.service.kit.paths import PathRefusedError, resolve_under_roots
from featurewatch.workers.activations.tensorfiles import write_text
from featurewatch.workers.errors import RunError

DEFAULT = "builtin:python-docs"
_CHARACTERS_PER_TOKEN = 4
_MIN_CHARACTERS = 40
_SPACE = re.compile(r"\s*")
# Modules with much documentation in sentences, in every build of Python and free of effects when imported.
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
""".split()  # noqa: SIM905 - a page of quoted names reads worse


@dataclass(frozen=True)
class Document:
    """One document of the probe corpus. `id` counts from 0 and names it in every artifact of the family."""

    id: int
    text: str


def load_corpus(
    uri: str | None, max_documents: int | None, roots: tuple[Path, ...], *, context_length: int = 256
) -> list[Document]:
    """The documents of a corpus, always the same ones in the same order.

    `uri`: `file:///x.jsonl` (one `{"text": ...}` a line, a document each), `file:///x.txt` (cut into documents of
    about `context_length` tokens), a folder of such files, or `builtin:python-docs` (also None): the language
    reference and docstrings that come with Python. Of more than `max_documents`, evenly spaced ones are taken.
    RunError `corpus-refused`, `corpus-missing`, `corpus-invalid`, `corpus-empty`.
    """
    size = context_length * _CHARACTERS_PER_TOKEN
    if uri in (None, "", DEFAULT):
        texts = _unique(piece for text in _python_docs() for piece in cut(text, size))
    elif uri.startswith("file:"):
        texts = list(_read_files(uri, roots, size))
    else:
        raise RunError("corpus-refused", f"{uri!r} is no corpus; use file:///x.jsonl, a .txt, a folder, or {DEFAULT}")
    if not texts:
        raise RunError("corpus-empty", f"{uri} holds no text")
    if max_documents is not None and len(texts) > max_documents:
        texts = [texts[i * len(texts) // max_documents] for i in range(max_documents)]
    return [Document(number, text) for number, text in enumerate(texts)]


def cut(text: str, size: int) -> Iterator[str]:
    """Pieces of at most `size` characters, cut behind a paragraph, else a sentence, else a word."""
    text, start = text.strip(), 0
    # By an index: to cut the rest off each time would take the square of a text's length.
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
    """Write documents as JSONL: `{"id": ..., "text": ...}` a line."""
    write_text(path, "".join(json.dumps({"id": d.id, "text": d.text}, ensure_ascii=True) + "\n" for d in documents))


def load_documents(path: Path) -> list[Document]:
    """Read what `save_documents` wrote."""
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
            raise RunError("corpus-missing", f"{uri} does not exist on the worker")
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
            raise RunError("corpus-invalid", f"{file.name} is not UTF-8: {error}") from error


def _read_jsonl(file: Path) -> Iterator[str]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                raise RunError("corpus-invalid", f'{file.name}, line {number}: no {{"text": ...}}') from error
            if not isinstance(text, str):
                raise RunError("corpus-invalid", f"{file.name}, line {number}: text is no string")
            if text.strip():
                yield text


def _python_docs() -> Iterator[str]:
    topics = pydoc_data.topics.topics
    yield from (topics[name] for name in sorted(topics))
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue  # a part of the standard library that this build of Python leaves out
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


def _unique(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if len(text) >= _MIN_CHARACTERS))
