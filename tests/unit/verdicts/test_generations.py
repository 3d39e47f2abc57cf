"""When a family is re-fitted, and on what: pure functions of what is kept of a checkpoint's ancestors."""

from typing import Any

import pytest

from featurewatch.service.kit.db import Database
from featurewatch.service.models import Checkpoint, Code, Source
from featurewatch.service.verdicts.generations import Ancestor, ancestry, anchors, fitted_fvu, reference_fvu, why_refit
from featurewatch.service.verdicts.policy import Policy
from tests import factories

HOOK = "resid_post.1"


def _ancestors(*described: tuple[int, float, bool], without: tuple[int, ...] = ()) -> list[Ancestor]:
    """v1, v2, ... as (generation, FVU, fitted), given oldest first; `without`: whose activations are gone."""
    made = [
        Ancestor(
            checkpoint=Checkpoint(name=f"v{number}", hook_points=[HOOK], quality={"fvu": fvu}),
            code=Code(generation=generation, extra={}),
            sources={HOOK: Source(hook_point=HOOK, activations=None if number in without else "folder")},
            fitted=fitted,
        )
        for number, (generation, fvu, fitted) in enumerate(described, start=1)
    ]
    return made[::-1]


FIRST, SECOND = [(1, 0.1, True), (1, 0.12, False), (1, 0.13, False)], [(2, 0.09, True), (2, 0.1, False)]


@pytest.mark.parametrize(("described", "policy", "why"), [
    ([], {}, None),
    (FIRST, {}, None),
    (FIRST, {"refit_every": 3}, None),
    (FIRST, {"refit_every": 2}, "2 extensions"),
    (FIRST[:2], {"refit_every": 1}, "1 extension"),
    (FIRST + SECOND, {"refit_every": 2}, None),  # the count restarts with each generation
    (FIRST, {"max_fvu_ratio": 1.25}, "fvu 0.13 over 1.25 x 0.1"),
    (FIRST + SECOND, {"max_fvu_ratio": 1.25}, None),  # against the generation's own fit
    ([*FIRST, (1, 0.31, False)], {}, "fvu 0.31 over 2 x 0.1"),
    ([(1, 0.9, True)], {"refit_every": 1}, None),
])  # fmt: skip
def test_why(described: list[Any], policy: dict[str, Any], why: str | None) -> None:
    assert why_refit(_ancestors(*described), Policy(**policy)) == why


def test_anchors_are_the_first_and_the_latest_that_were_fitted_on() -> None:
    third = [(3, 0.1, True), (3, 0.1, False)]
    found = {most: [a.checkpoint.name for a in anchors(_ancestors(*FIRST, *SECOND, *third), [HOOK], most)]
             for most in (1, 2, 3, 9)}  # fmt: skip
    assert found == {1: ["v1"], 2: ["v1", "v6"], 3: ["v1", "v4", "v6"], 9: ["v1", "v4", "v6"]}


def test_anchors_whose_activations_are_gone() -> None:
    def names(*without: int, hooks: tuple[str, ...] = (HOOK,)) -> list[str]:
        return [a.checkpoint.name for a in anchors(_ancestors(*FIRST, *SECOND, without=without), list(hooks), 2)]

    assert names(1) == ["v4"]
    assert names(1, 4) == ["v5"], "the parent stands in where none is left"
    assert names(hooks=("mlp_out.2", "mlp_out.3")) == ["v5"]


def test_fvu_of_the_fit() -> None:
    assert fitted_fvu(_ancestors(*FIRST, *SECOND)) == 0.09
    assert fitted_fvu(_ancestors(*FIRST)) == 0.1
    assert fitted_fvu([]) is None


def test_ancestry_tells_what_was_fitted(database: Database) -> None:
    """The first of a generation was; of the same generation those that say so."""
    with database.write() as session:
        family = factories.family(session)
        parent = None
        for name, generation, extra in (("v1", 1, {}), ("v2", 1, {"fitted": True}), ("v3", 1, {}), ("v4", 2, {})):
            parent = factories.checkpoint(session, family, name, parent=parent, generation=generation)
            session.add(Code(checkpoint_id=parent.id, family_id=family.id, generation=generation, artifact="c",
                             examples="e", n_positions=1, n_features=1, extra=extra))  # fmt: skip
        newest = factories.checkpoint(session, family, "v5", parent=parent, state="registered")
        found = {one.checkpoint.name: one.fitted for one in ancestry(session, newest)}
    assert found == {"v4": True, "v3": False, "v2": True, "v1": True}
    assert list(found) == ["v4", "v3", "v2", "v1"]


def test_the_fvu_to_compare_with(database: Database) -> None:
    """That of the checkpoint that the dictionary was fitted on last, as a walk over the ancestors finds it."""
    lineage = [("v1", 1, {}), ("v2", 1, {}), ("v3", 1, {"fitted": True}), ("v4", 1, {}), ("v5", 2, {}), ("v6", 2, {})]
    with database.write() as session:
        family, rows = factories.family(session), []
        for number, (name, generation, extra) in enumerate(lineage, 1):
            quality = {"fvu": number / 10}
            parent = rows[-1] if rows else None
            row = factories.checkpoint(session, family, name, parent=parent, generation=generation, quality=quality)
            session.add(Code(checkpoint_id=row.id, family_id=family.id, generation=generation, artifact="c",
                             examples="e", n_positions=1, n_features=1, extra=extra))  # fmt: skip
            rows.append(row)
        session.flush()
        found = {row.name: reference_fvu(session, row) for row in rows}
        extended = {name: fitted_fvu(ancestry(session, row)) for name, row in zip(found, rows, strict=True)
                    if found[name] is not None}  # fmt: skip
        waiting = factories.checkpoint(session, family, "v7", parent=rows[-1], state="registered")
        assert reference_fvu(session, waiting) is None
    assert found == {"v1": None, "v2": 0.1, "v3": None, "v4": 0.3, "v5": None, "v6": 0.5}
    assert extended == {"v2": 0.1, "v4": 0.3, "v6": 0.5}
