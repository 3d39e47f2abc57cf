"""Codes of errors, read from the source: what the API answers, and what runs end with."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]


def of_problems() -> set[str]:
    """Of problem documents: `code=` of calls below `service`, the defaults of the error classes, the tables of titles.

    Those of the framework's own errors follow from the HTTP status; a route that is not there has the code of a row
    that is not.
    """
    found = {"method-not-allowed"}
    for node in _nodes("service", but=("service/client", "service/cli")):
        match node:
            case ast.Call(keywords=keywords):
                found |= {text for word in keywords if word.arg == "code" for text in _texts(word.value)}
            case ast.AnnAssign(target=ast.Name(id="code"), value=ast.Constant(value=str(text))):
                found.add(text)
            case ast.Assign(targets=[ast.Tuple(elts=[_, ast.Name(id="code"), _])], value=ast.Tuple(elts=values)):
                found |= set(_texts(values[1]))
            case ast.Assign(targets=[ast.Name(id="TITLES")], value=ast.Dict(keys=keys)):
                found |= {text for key in keys if key for text in _texts(key)}
    return found


def of_runs() -> set[str]:
    """Of the `error` of runs that failed: RunError's, what the reaper and the runner say, faults of files."""
    found = set[str]()
    for node in _nodes("workers", "service/runs"):
        match node:
            case ast.Call(func=ast.Name(id="RunError"), args=[first, *_]):
                found |= set(_texts(first))
            case ast.Call(func=ast.Attribute(attr="__init__"), args=[ast.Constant(value=str(text)), _]):
                found.add(text)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                found |= {text for key, value in pairs if key and _texts(key) == ["code"] for text in _texts(value)}
            case ast.Assign(targets=[ast.Name(id="code")], value=value):
                found |= set(_texts(value))
    return found


def _nodes(*folders: str, but: tuple[str, ...] = ()) -> Iterator[ast.AST]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not str(path.relative_to(ROOT)).startswith(but):
                yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def _texts(value: ast.expr) -> list[str]:
    """The texts that an expression may be, where it is one itself or a choice of two."""
    match value:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=body, orelse=orelse):
            return [*_texts(body), *_texts(orelse)]
    return []
