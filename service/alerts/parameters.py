"""The parameters of a kind of alert rule, as commands and forms ask for them."""

from enum import EnumType
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from featurewatch.service.alerts.conditions import BaseCondition

_SINGULAR = {"statuses": "status", "places": "places"}


class Parameter(NamedTuple):
    """One parameter."""

    name: str
    """As the API names it"""
    one: str
    """Name of one value: `status` of `statuses`"""
    type: type
    """str, int or float: of one value"""
    many: bool
    required: bool
    choices: tuple[str, ...]
    """The only values; empty: any"""
    title: str
    help: str
    example: str


def parameters(kind: type[BaseCondition]) -> list[Parameter]:
    """The parameters of a kind, in the order of its fields."""
    found = []
    for name, field in kind.model_fields.items():
        if name == "kind":
            continue
        type_, many = _unwrapped(field.annotation), False
        if get_origin(type_) is list:
            type_, many = _unwrapped(get_args(type_)[0]), True
        choices = _choices(type_)
        one = _SINGULAR.get(name, name.removesuffix("s")) if many else name
        found.append(
            Parameter(
                name=name,
                one=one,
                type=str if choices else type_,
                many=many,
                required=field.is_required(),
                choices=choices,
                title=field.title or one.replace("_", " ").capitalize(),
                help=field.description or "",
                example=str((field.examples or [""])[0]),
            )
        )
    return found


def _choices(type_: Any) -> tuple[str, ...]:
    if get_origin(type_) is Literal:
        return get_args(type_)
    return tuple(type_) if isinstance(type_, EnumType) else ()


def _unwrapped(annotation: Any) -> Any:
    """A type without `| None` and without constraints."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not NoneType)
    return getattr(annotation, "__origin__", annotation) if hasattr(annotation, "__metadata__") else annotation
