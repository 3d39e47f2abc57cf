"""Generates the types of the Python client from the OpenAPI document, and the synchronous client from the asynchronous
one.
"""

import keyword
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from featurewatch.service.app import create_app
from featurewatch.service.config import Settings

CLIENT = Path(__file__).parents[1] / "service" / "client"
PREFIX = "#/components/schemas/"
NAMES = {
    "FeatureDetail": "Feature",
    "NewKeyOut": "NewKey",
    "Settings": "SignatureSettings",
    "featurewatch__service__runs__schemas__AttemptView": "Attempt",
    "featurewatch__service__webhooks__schemas__AttemptView": "DeliveryAttempt",
}
"""Client names of shapes whose name is not that of the API without `Out` or `View`."""

SYNC = [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"Callable\[\[float\], Awaitable\[object\]\]", "Callable[[float], object]"),
    (r"\bAwaitable, ", ""),
    (r"\basyncio\b", "time"),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basynchronous\b", "synchronous"),
    (r"\bAsynchronous ", ""),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"__aenter__", "__enter__"),
    (r"__aexit__", "__exit__"),
    (r"\ba(close|read|iter_bytes|iter_lines)\b", r"\1"),
    (r"\bservice\.client\.aio\b", "service.client.sync"),
]
"""Patterns that turn asynchronous code into synchronous code, applied in order."""

TYPES_HEAD = '''"""Shapes of the REST API{part}, as the client returns and takes them: dictionaries with known keys.

Written by `make docs` from the OpenAPI document.
"""
'''

# pydantic takes no other TypedDict on Python 3.11.
TYPES_IMPORTS = "from typing import Any, Literal, NotRequired\nfrom typing_extensions import TypedDict"


def pages() -> dict[Path, str]:
    """Every generated file of the client, with its text."""
    sync = {CLIENT / "sync" / path.name: _synchronous(path) for path in sorted((CLIENT / "aio").glob("*.py"))}
    return sync | _types()


def name_of(component: str) -> str:
    """The client's name of a shape of the OpenAPI document."""
    return NAMES.get(component) or re.sub(r"(Out|View)$", "", component)


def _synchronous(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    for pattern, replacement in SYNC:
        text = re.sub(pattern, replacement, text)
    if path.name == "__init__.py":
        return '"""The synchronous client. `make docs` generates it from service/client/aio."""\n'
    notice = f"# Written by `make docs` from {path.relative_to(CLIENT.parents[1])}.\n"
    return _formatted(notice + text)


def _types() -> dict[Path, str]:
    """A module of types for each tag of the API. A shape belongs to the first tag whose responses, or else requests,
    use it. Request bodies have no type: their fields are a method's parameters.
    """
    document = create_app(Settings(data_dir=Path("none"))).openapi()
    schemas = document["components"]["schemas"]
    _name_unions(schemas)
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    bodies, home = set[str](), dict[str, str]()
    for operation in operations:
        answers = [about for status, about in operation["responses"].items() if status < "300"]
        for component in sorted(_reached(answers, schemas)):
            home.setdefault(component, operation["tags"][0])
    for operation in operations:
        body = operation.get("requestBody", {})
        bodies |= _reached(body, schemas)
        for component in sorted(_reached(body, schemas) - set(referred(body))):
            home.setdefault(component, operation["tags"][0])
    home = {name: tag for name, tag in home.items() if not name.startswith("Page_")}
    files = {}
    for tag in dict.fromkeys(home.values()):
        parts = [TYPES_HEAD.format(part=f" about {tag}"), TYPES_IMPORTS]
        here = [name for name in home if home[name] == tag]
        there = sorted({other for name in here for other in referred(schemas[name])} - set(here))
        parts += [f"from featurewatch.service.client.types.{home[other]} import {name_of(other)}" for other in there]
        parts += [_declared(name, schemas[name], name in bodies) for name in _ordered(here, schemas)]
        text = "\n\n".join(parts)
        files[CLIENT / "types" / f"{tag}.py"] = _formatted(text)
    exported = "\n".join(
        f"from featurewatch.service.client.types.{home[name]} import {name_of(name)} as {name_of(name)}"
        for name in home
    )
    names = ("CircuitFinding", "Comparison", "Registered", "SignatureCourse", "Untyped")
    added = "".join(f"from featurewatch.service.client.types.added import {name} as {name}\n" for name in names)
    files[CLIENT / "types" / "__init__.py"] = _formatted(TYPES_HEAD.format(part="") + exported + "\n" + added)
    return files


def _name_unions(schemas: dict[str, Any]) -> None:
    """Make shapes of tagged unions, which the document writes out where they stand: of `condition`, `Condition`."""
    for schema in list(schemas.values()):
        for field, about in schema.get("properties", {}).items():
            if "discriminator" in about:
                schemas[field.title()] = about
                schema["properties"][field] = {"$ref": PREFIX + field.title()}


def _declared(component: str, schema: dict[str, Any], asked: bool) -> str:
    """The declaration of a shape. asked: requests have it too, and may leave out what has a default."""
    name = name_of(component)
    if "properties" not in schema:
        return f"{name} = {_type(schema)}"
    required = schema.get("required", [])
    fields = {
        field: _type(about) if field in required or not asked else f"NotRequired[{_type(about)}]"
        for field, about in schema["properties"].items()
    }
    if any(keyword.iskeyword(field) for field in fields):
        return f"{name} = TypedDict({name!r}, {{{', '.join(f'{field!r}: {kind}' for field, kind in fields.items())}}})"
    doc = str(schema.get("description") or f"`{component}` of the OpenAPI document.").partition("\n")[0]
    return f'class {name}(TypedDict):\n    """{doc}"""\n\n' + "\n".join(
        f"    {field}: {kind}" for field, kind in fields.items()
    )


def _type(schema: dict[str, Any]) -> str:  # noqa: PLR0911
    """A schema as a Python type."""
    if "$ref" in schema:
        return name_of(schema["$ref"].removeprefix(PREFIX))
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return " | ".join(dict.fromkeys(map(_type, schema[union])))
    if "enum" in schema or "const" in schema:
        return f"Literal[{', '.join(map(repr, schema.get('enum', [schema.get('const')])))}]"
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"list[{' | '.join(dict.fromkeys(map(_type, schema['prefixItems'])))}]"
        case "array":
            return f"list[{_type(schema.get('items', {}))}]"
        case "object":
            values = schema.get("additionalProperties")
            return f"dict[str, {_type(values) if isinstance(values, dict) else 'Any'}]"
        case None:
            return "Any"
        case kind:
            return {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}[kind]


def referred(schema: Any) -> Iterator[str]:
    """Names of the shapes that a schema refers to itself."""
    if isinstance(schema, dict):
        if "$ref" in schema:
            yield schema["$ref"].removeprefix(PREFIX)
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            yield from referred(part)


def _reached(schema: Any, schemas: dict[str, Any]) -> set[str]:
    """Names of all shapes that a schema leads to."""
    found, left = set[str](), list(referred(schema))
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += referred(schemas[name])
    return found


def _ordered(names: list[str], schemas: dict[str, Any]) -> list[str]:
    """Shapes after those that they refer to: `TypedDict("Diff", ...)` looks its types up at once."""
    done: list[str] = []
    left = list(names)
    while left:
        ready = [name for name in left if not (set(referred(schemas[name])) & set(left)) - {name}]
        done += ready or left
        left = [name for name in left if name not in done]
    return done


def _formatted(text: str) -> str:
    """Text as `make lint` wants it."""
    ours = ["--config", 'lint.isort.known-first-party=["featurewatch"]']  # files that are not there yet, too
    for step in (["check", "--select", "I,F401", "--fix", "--quiet", *ours], ["format"]):
        command = [sys.executable, "-m", "ruff", *step, "--stdin-filename", str(CLIENT / "made.py"), "-"]
        text = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout  # noqa: S603
    return text


def main() -> None:
    """Write the files: before docs/build.py, whose command uses the client."""
    for path, text in pages().items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
