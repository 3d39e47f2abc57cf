"""Codes of errors, read from the source: what the API answers, and what runs end with."""

import ast
from collections.abc import Iterator
from pathlib import Path

from featurewatch.service.checkpoints.faults import TITLES
from featurewatch.service.kit import problems
from featurewatch.service.kit.artifacts import DamagedArtifactError, MissingArtifactError

ROOT = Path(__file__).parents[2]


def of_problems() -> dict[str, int]:
    """Code of a problem document -> its HTTP status: `code=` of calls below `service`, the defaults of the error
    classes, the tables of titles.

    Those of the framework's own errors follow from the HTTP status; a route that is not there has the code of a row
    that is not.
    """
    found = {"method-not-allowed": 405}
    for node in _nodes("service", but=("service/client", "service/cli")):
        match node:
            case ast.Call(func=function, keywords=keywords):
                named = {word.arg: word.value for word in keywords}
                found |= {text: _status(function, named) for text in _texts(named.get("code"))}
            case ast.AnnAssign(target=ast.Name(id="code"), value=ast.Constant(value=str(text))):
                found[text] = problems.ProblemError.status
            case ast.Assign(targets=[ast.Tuple(elts=[_, ast.Name(id="code"), _])], value=ast.Tuple(elts=values)):
                found |= {text: ast.literal_eval(values[0]) for text in _texts(values[1])}
            case ast.Assign(targets=[ast.Name(id="TITLES")], value=ast.Dict(keys=keys)):
                found |= {text: problems.UnprocessableError.status for key in keys for text in _texts(key)}
    return found


def of_runs() -> set[str]:
    """Of the `error` of runs that failed: RunError's, what the reaper and the runner say, faults of files."""
    # What the service says of files and artifacts, workers say too.
    found = {*TITLES, DamagedArtifactError.code, MissingArtifactError.code}
    for node in _nodes("workers", "service/runs"):
        match node:
            case ast.Call(func=ast.Name(id="RunError"), args=[first, *_]):
                found |= set(_texts(first))
            case ast.Call(func=ast.Attribute(attr="__init__"), args=[ast.Constant(value=str(text)), _]):
                found.add(text)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                found |= {text for key, value in pairs if _texts(key) == ["code"] for text in _texts(value)}
            case ast.Assign(targets=[ast.Name(id="code")], value=value):
                found |= set(_texts(value))
    return found


def _nodes(*folders: str, but: tuple[str, ...] = ()) -> Iterator[ast.AST]:
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if not str(path.relative_to(ROOT)).startswith(but):
                yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def _status(function: ast.expr, named: dict[str | None, ast.expr]) -> int:
    """Of the call that answers with a code: it names the status, or its class has one."""
    if "status" in named:
        return int(ast.literal_eval(named["status"]))
    assert isinstance(function, ast.Name)
    return int(getattr(problems, function.id).status)


def _texts(value: ast.expr | None) -> list[str]:
    """The texts that an expression may be, where it is one itself or a choice of two."""
    match value:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.IfExp(body=body, orelse=orelse):
            return [*_texts(body), *_texts(orelse)]
    return []
