"""Kinds that exist once, and what derives from them."""

from importlib import import_module
from typing import Annotated, Literal, get_args

import pytest
from pydantic import Field

from featurewatch.service.alerts.conditions import KINDS, SWEPT, AlertKind, BaseCondition
from featurewatch.service.alerts.parameters import parameters
from featurewatch.service.lineage.schemas import LINK_KINDS
from featurewatch.service.runs.kinds import QUEUES, RunKind, queue_of
from featurewatch.service.runs.schemas import Level
from featurewatch.workers.crosscoder import matching
from featurewatch.workers.pipelines import PIPELINES


def test_every_kind_of_run_has_a_pipeline_and_a_queue() -> None:
    assert set(PIPELINES) == set(RunKind)
    for kind in RunKind:
        assert callable(import_module(f"featurewatch.workers.pipelines.runs.{kind}").run)
    assert {queue_of(kind) for kind in RunKind} == set(QUEUES)
    assert queue_of("a kind of somebody's own") == "runs"


@pytest.mark.parametrize("kind", KINDS)
def test_people_are_told_what_a_rule_does(kind: str) -> None:
    cls = KINDS[kind]
    assert (cls.__doc__ or "").endswith(".") and "\n" not in (cls.__doc__ or "")
    assert cls.resolved_when and kind in get_args(AlertKind)
    for parameter in parameters(cls):
        assert parameter.help.endswith("."), parameter.name
        assert parameter.type in (str, int, float), parameter.name


def test_parameters_offer_the_words_that_a_type_allows() -> None:
    class Sized(BaseCondition):
        kind: Literal["sized"]
        level: Level = Field(description="Level.")
        sizes: list[Annotated[Literal["small", "large"], Field()]] = Field(default_factory=list)

    level, sizes = parameters(Sized)
    assert (level.type, level.many, level.required, level.choices) == (str, False, True, ("info", "warning", "error"))
    assert (sizes.one, sizes.many, sizes.required, sizes.choices) == ("size", True, False, ("small", "large"))


def test_sweeps_raise_what_no_checkpoint_shows() -> None:
    assert SWEPT == ["run_failed", "absence", "webhook_paused"]


def test_a_fit_and_the_service_name_the_same_links() -> None:
    assert set(LINK_KINDS) == set(matching.KINDS)
