"""The points of `benchmarks.scale` that a regression is measured at run, on sizes that take no time."""

import pytest

from benchmarks.scale import regression_point


@pytest.mark.parametrize("kind", ["cholesky", "conjugate gradient"])
def test_a_regression_is_timed_in_its_parts(kind: str) -> None:
    found = regression_point({"kind": kind, "positions": 4000, "latents": 1024, "width": 8})
    parts = found["left_s"] + 2 * (found["solve_s"] + found["influences_s"])
    assert found["seconds"] == pytest.approx(parts)
    assert min(found["left_s"], found["solve_s"], found["influences_s"]) > 0
    assert (found["iterations"] > 0) == (kind == "conjugate gradient")
