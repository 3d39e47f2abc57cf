"""Writes docs/api-reference.md from the OpenAPI document: operations by tag, then the shapes of what goes and comes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from client_code import PREFIX, name_of

from featurewatch.service.app import create_app
from featurewatch.service.auth.guard import check_early
from featurewatch.service.auth.logic import Principal
from featurewatch.service.config import Settings
from featurewatch.service.kit.problems import ProblemError

HEAD = """# API reference

Written by `make docs` from the OpenAPI document. A running service has it at `/openapi.json`, and an interactive page
at `/docs`. Conventions for all calls (errors, keys, pages, idempotency, jobs) are in [api.md](api.md). A field with a
`*` is required, and always present in responses; one without may be omitted or null. Shapes have the same names in the
Python client (`featurewatch.service.client.types`). POST and PATCH also accept an `Idempotency-Key`.

Any call below `/v1` may return 401, 403, 422, 429 or 500; each operation lists its other errors. Every error is a
problem document. [problems.md](problems.md) lists the codes and what to do about each."""
EVERYWHERE = frozenset({"401", "403", "422", "429", "500"})
LIMITS = {
    "minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<", "maxLength": "length ≤",
    "minLength": "length ≥", "maxItems": "items ≤", "minItems": "items ≥",
}  # fmt: skip


def page() -> str:
    """The whole page."""
    document = create_app(Settings(data_dir=Path("none"))).openapi()
    operations: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            operations.setdefault(about["tags"][0], []).append(_operation(method.upper(), path, about))
    parts = [HEAD, "\n".join(_contents(operations))]
    for tag, texts in operations.items():
        parts += [f"## {tag}", *texts]
    parts.append("## Shapes")
    schemas = document["components"]["schemas"]
    parts += [_shape(name, schemas[name]) for name in sorted(schemas, key=name_of) if not name.startswith("Page_")]
    return "\n\n".join(parts) + "\n"


def scope_of(method: str, path: str) -> str:
    """The scope that a call needs, as the guard has it; empty where it needs no key."""
    if not path.startswith("/v1"):
        return "read" if path == "/metrics" else ""
    for scope in ("read", "write", "admin"):
        try:
            check_early(Principal("", scopes=frozenset({scope})), method, path)
        except ProblemError:
            continue
        return scope
    raise LookupError(f"no scope opens {method} {path}")


def _contents(operations: dict[str, list[str]]) -> Iterator[str]:
    for tag, texts in operations.items():
        yield f"- [{tag}](#{tag}): {len(texts)}"
    yield "- [Shapes](#shapes)"


def _operation(method: str, path: str, about: dict[str, Any]) -> str:
    scope = scope_of(method, path)
    parts = [f"### {method} {path}", f"{about['summary']}. " + (f"Scope `{scope}`." if scope else "Needs no key.")]
    if said := _line(about.get("description", "")):
        parts.append(said)
    parameters = [p for p in about.get("parameters", []) if p["in"] == "query"]
    if parameters:
        parts.append(_table("query", parameters))
    facts = []
    for kind, content in about.get("requestBody", {}).get("content", {}).items():
        facts.append(f"- body: {_body(kind, content)}")
    refused = []
    for status, answer in sorted(about["responses"].items()):
        if status >= "400":
            refused += [status] * (status not in EVERYWHERE)
            continue
        told = answer["description"].rstrip(".")
        given = " or ".join(_body(kind, content) for kind, content in answer.get("content", {}).items())
        facts.append(f"- {status}: {given or 'nothing'}" + ("" if told == "Successful Response" else f". {told}"))
    if refused:
        facts.append(f"- refuses with: {', '.join(refused)}")
    return "\n\n".join([*parts, "\n".join(facts)])


def _body(kind: str, content: dict[str, Any]) -> str:
    """A body in words: what JSON holds, or else the media type."""
    return _type(content["schema"]) if kind == "application/json" else f"`{kind}`"


def _shape(name: str, schema: dict[str, Any]) -> str:
    parts = [f"### {name_of(name)}"]
    if said := _line(schema.get("description", "")):
        parts.append(said)
    fields = [
        {"name": field, "required": field in schema.get("required", []), "schema": about, **about}
        for field, about in schema.get("properties", {}).items()
    ]
    parts.append(_table("field", fields) if fields else _type(schema))
    return "\n\n".join(parts)


def _table(what: str, rows: list[dict[str, Any]]) -> str:
    lines = [f"| {what} | type | default | what it is |", "|---|---|---|---|"]
    for row in rows:
        schema = row["schema"]
        name = f"`{row['name']}`" + (" *" if row.get("required") else "")
        default = f"`{_value(schema['default'])}`" if schema.get("default") not in (None, "", [], {}) else ""
        kind = _type(schema) if row.get("required") else _type(schema).removesuffix(" or null")
        limits = ", ".join(_limits(schema))
        said = ". ".join(text.rstrip(".") for text in (_line(row.get("description", "")), limits) if text)
        lines.append(f"| {name} | {kind} | {default} | {said} |")
    return "\n".join(lines)


def _limits(schema: dict[str, Any]) -> Iterator[str]:
    for part in (schema, *schema.get("anyOf", [])):
        for word, sign in LIMITS.items():
            if word in part:
                yield f"{sign} {part[word]:,.10g}"


def _value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _line(text: str) -> str:
    """Text of a docstring, as one line that may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def _type(schema: dict[str, Any]) -> str:  # noqa: PLR0911
    """A schema in words, with links to the shapes below."""
    if "$ref" in schema:
        return _named(schema["$ref"].removeprefix(PREFIX))
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[union])))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return f"[{', '.join(map(_type, schema['prefixItems']))}]"
        case "array":
            return f"list of {_type(schema.get('items', {}))}"
        case "object":
            values = schema.get("additionalProperties")
            return f"object of {_type(values)}" if isinstance(values, dict) and values else "object"
        case "string" if schema.get("format") in ("date-time", "binary"):
            return {"date-time": "time", "binary": "bytes"}[schema["format"]]
        case kind:
            return str(kind or "any")


def _named(component: str) -> str:
    if component.startswith("Page_"):
        return f"page of {_named(component.removeprefix('Page_').removesuffix('_'))}"
    name = name_of(component)
    return f"[{name}](#{name.lower()})"
