"""The table of figures, the tables of the database and the API's models say the same."""

import types
from typing import get_args, get_origin

import numpy as np
import pytest
from sqlalchemy import Float, Integer

from featurewatch.service.features.schemas import Point
from featurewatch.service.features.sorting import SORTS
from featurewatch.service.features.tables import COLUMNS_OF
from featurewatch.service.models import Verdict
from featurewatch.service.verdicts.figures import COLUMNS, FIGURES, Figure
from featurewatch.service.verdicts.table import VerdictRow

each_figure = pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)


def test_the_database_has_these_columns() -> None:
    assert set(COLUMNS) == set(Verdict.__table__.c.keys()) - {"checkpoint_id", "family_id"}
    assert set(VerdictRow.__annotations__) <= set(COLUMNS)


@each_figure
def test_columns_of_the_database(figure: Figure) -> None:
    for name in figure.columns:
        column = Verdict.__table__.c[name]
        assert isinstance(column.type, Integer if figure.whole else Float)
        assert column.nullable is not figure.required


def test_the_api_has_these_fields() -> None:
    others = {"checkpoint", "baseline", "status", "previous_status", "places", "successors", "rewired"}
    fields = {figure.name for figure in FIGURES} | {f"{figure.name}_ci" for figure in FIGURES if figure.ends}
    assert set(Point.model_fields) == fields | others


@each_figure
def test_fields_of_the_api(figure: Figure) -> None:
    field = Point.model_fields[figure.name]
    kinds = get_args(field.annotation) if get_origin(field.annotation) is types.UnionType else (field.annotation,)
    assert kinds[0] is (int if figure.whole else float)
    assert (type(None) in kinds) is not figure.required
    assert field.description == figure.about


@each_figure
def test_a_figure_is_shown_with_its_label(figure: Figure) -> None:
    assert figure.about.endswith(".") and SORTS[figure.name].title
    assert figure.heading or not {"list", "course"} & set(figure.views)
    assert len(figure.labels) == len(figure.columns)
    assert set(figure.columns) <= set(COLUMNS_OF["verdicts"])


def test_labels_are_unique() -> None:
    labels = [label for figure in FIGURES for label in figure.labels]
    assert len(set(labels)) == len(labels)


@each_figure
def test_packed_types_hold_the_figure(figure: Figure) -> None:
    if figure.packed:
        assert np.dtype(figure.packed).kind == ("i" if figure.whole else "f")
        assert figure.whole <= figure.required, "integers have no NaN"
