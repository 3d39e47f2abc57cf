"""What is kept in memory: never more than so many bytes, and those that were asked for last."""

import numpy as np

from featurewatch.service.kit.kept import Kept


def test_the_least_asked_for_goes_first() -> None:
    made: list[str] = []

    def value(name: str) -> np.ndarray:
        made.append(name)
        return np.zeros(10, dtype=np.uint8)

    kept: Kept[np.ndarray] = Kept(30)
    first = kept.get("a", lambda: value("a"))
    for name in ("b", "c", "a", "d"):
        kept.get(name, lambda name=name: value(name))
    assert kept.get("a", lambda: value("a")) is first
    kept.get("b", lambda: value("b"))
    assert made == ["a", "b", "c", "d", "b"], "b had to go for d, since a was asked for after it"


def test_what_is_too_large_is_given_but_not_kept() -> None:
    kept: Kept[np.ndarray] = Kept(30)
    small, large = np.zeros(20, dtype=np.uint8), np.zeros(31, dtype=np.uint8)
    kept.get("small", lambda: small)
    assert kept.get("large", lambda: large) is large
    again = np.zeros(31, dtype=np.uint8)
    assert kept.get("large", lambda: again) is again


def test_those_that_are_not_there_are_made_together() -> None:
    made: list[list[str]] = []

    def values(names: list[str]) -> dict[str, np.ndarray]:
        made.append(names)
        return {name: np.zeros(10, dtype=np.uint8) for name in names}

    kept: Kept[np.ndarray] = Kept(30)
    first = kept.get_all(["a", "b"], values)
    again = kept.get_all(["b", "c", "a"], values)
    assert made == [["a", "b"], ["c"]] and set(again) == {"a", "b", "c"}
    assert again["a"] is first["a"] and again["b"] is first["b"]
    assert set(kept.get_all(["d", "e", "f", "g"], values)) == {"d", "e", "f", "g"}, "more than is kept is given all"
    kept.get_all(["g", "d"], values)
    assert made[2:] == [["d", "e", "f", "g"], ["d"]]
    assert kept.get_all([], values) == {} and len(made) == 4
