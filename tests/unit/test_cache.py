"""The size-bounded cache: it never holds more than its limit, and drops the least recently used first."""

import numpy as np

from featurewatch.service.kit.cache import SizedCache


def test_the_least_recently_used_is_dropped_first() -> None:
    computed: list[str] = []

    def value(name: str) -> np.ndarray:
        computed.append(name)
        return np.zeros(10, dtype=np.uint8)

    cache: SizedCache[np.ndarray] = SizedCache(30)
    first = cache.get("a", lambda: value("a"))
    for name in ("b", "c", "a", "d"):
        cache.get(name, lambda name=name: value(name))
    assert cache.get("a", lambda: value("a")) is first
    cache.get("b", lambda: value("b"))
    assert computed == ["a", "b", "c", "d", "b"], "b was dropped for d, since a was used after it"


def test_a_value_larger_than_the_cache_is_returned_but_not_stored() -> None:
    cache: SizedCache[np.ndarray] = SizedCache(30)
    small, large = np.zeros(20, dtype=np.uint8), np.zeros(31, dtype=np.uint8)
    cache.get("small", lambda: small)
    assert cache.get("large", lambda: large) is large
    again = np.zeros(31, dtype=np.uint8)
    assert cache.get("large", lambda: again) is again
    assert cache.get("small", lambda: again) is small, "nothing is dropped for a value that does not fit"


def test_missing_values_are_computed_together() -> None:
    computed: list[list[str]] = []

    def values(names: list[str]) -> dict[str, np.ndarray]:
        computed.append(names)
        return {name: np.zeros(10, dtype=np.uint8) for name in names}

    cache: SizedCache[np.ndarray] = SizedCache(30)
    first = cache.get_all(["a", "b"], values)
    again = cache.get_all(["b", "c", "a"], values)
    assert computed == [["a", "b"], ["c"]] and set(again) == {"a", "b", "c"}
    assert again["a"] is first["a"] and again["b"] is first["b"]
    assert set(cache.get_all(["d", "e", "f", "g"], values)) == {"d", "e", "f", "g"}, "more than fits is still returned"
    cache.get_all(["g", "d"], values)
    assert computed[2:] == [["d", "e", "f", "g"], ["d"]]
    assert cache.get_all([], values) == {} and len(computed) == 4
