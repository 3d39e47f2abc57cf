"""The format of API keys: `fw_`, 8 lookup characters, 32 random characters and a 6-character checksum.

The checksum detects typing errors without the database, and lets secret scanners recognise keys.
"""

import hashlib
import hmac
import secrets
import zlib

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_PREFIX, _SECRET, _CHECK = 8, 32, 6
KEY_LENGTH = 3 + _PREFIX + _SECRET + _CHECK


def make_key() -> str:
    """A new key with 160 secret bits."""
    body = "fw_" + "".join(secrets.choice(_ALPHABET) for _ in range(_PREFIX + _SECRET))
    return body + _checksum(body)


def well_formed(key: str) -> bool:
    """Whether a string has the format and checksum of a key."""
    return (
        len(key) == KEY_LENGTH
        and key.isascii()
        and key[:-_CHECK].startswith("fw_")
        and _checksum(key[:-_CHECK]) == key[-_CHECK:]
    )


def lookup_prefix(key: str) -> str:
    """The part that is stored in plaintext, used for lookup and shown in lists."""
    return key[: 3 + _PREFIX]


def hash_key(key: str) -> str:
    """The stored hash of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def matches(key: str, stored: str) -> bool:
    """Whether a key matches a stored hash, in constant time."""
    return hmac.compare_digest(hash_key(key), stored)


def _checksum(body: str) -> str:
    number = zlib.crc32(body.encode())
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(25, -1, -5))
