"""Identifiers: a prefix that names the noun, and a ULID, which sorts by time of creation."""

import os
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32, lower case


def new_id(prefix: str) -> str:
    """A new identifier such as `run_01jd3k...`: 48 bits of milliseconds and 80 random bits.

    Own code: two lines do not justify the dependency on python-ulid.
    """
    number = (time.time_ns() // 1_000_000) << 80 | int.from_bytes(os.urandom(10))
    return f"{prefix}_" + "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))


def feature_id(number: int) -> str:
    """The public id of a feature, `F42318`."""
    return f"F{number}"


def parse_feature_id(text: str) -> int:
    """The number of a feature id. ValueError if the text is not one."""
    if not (text[:1] in "Ff" and text[1:].isdecimal() and len(text) <= 12):
        raise ValueError(f"{text!r} is not a feature id, such as F42318")
    return int(text[1:])
