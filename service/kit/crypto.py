"""Encryption at rest of secrets that must be read again: webhook URLs and signing secrets.

AES-256-GCM with a key derived (HKDF-SHA256) from the installation's secret key. The context, e.g. the id of the row, is
authenticated too, so a ciphertext copied into another row cannot be decrypted there. During a rotation, secrets
encrypted with earlier keys can still be decrypted (docs/adr/0033).
"""

import os
import secrets
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy.engine import make_url

from featurewatch.service.config import Settings

KEY_FILE = "secret.key"
OLD_KEY_FILE = "secret.key.old"
"""Earlier keys, one per line, while `featurewatch key rotate-secret` re-encrypts their secrets."""
_VERSION = b"\x01"
_NONCE_BYTES = 12
_MIN_LENGTH = 16


class SecretKeyError(RuntimeError):
    """The secret key is missing or unusable, or a stored secret was encrypted with another one."""


class SecretBox:
    """Encrypts the small secrets of an installation with its newest key, and decrypts them with any of its keys.

    Key files are read at each use, so a running process notices a rotation without a restart. create: if False, a
    missing key file is an error, because stored secrets need the key that it contained.
    """

    def __init__(self, settings: Settings, *, create: bool = True) -> None:
        self._settings = settings
        _secret_keys(settings, create=create)

    def encrypt(self, plain: bytes, *, context: str) -> bytes:
        """Version byte, nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        cipher = _cipher(_secret_keys(self._settings)[0])
        return _VERSION + nonce + cipher.encrypt(nonce, plain, context.encode())

    def decrypt(self, sealed: bytes, *, context: str) -> bytes:
        """The plaintext. SecretKeyError if the key, the context or the bytes differ from those of `encrypt`."""
        if sealed[:1] != _VERSION:
            raise SecretKeyError("a stored secret has an unknown format")
        keys = _secret_keys(self._settings)
        plain = _open(sealed, keys, context)
        if plain is None and (now := _secret_keys(self._settings)) != keys:  # a rotation happened in between
            plain = _open(sealed, now, context)
        if plain is None:
            raise SecretKeyError(
                "cannot decrypt a stored secret with this FEATUREWATCH_SECRET_KEY; if the key was changed, set "
                "FEATUREWATCH_SECRET_KEY_OLD to the earlier one"
            )
        return plain

    def is_current(self, sealed: bytes, *, context: str) -> bool:
        """Whether it was encrypted with the newest key."""
        return _open(sealed, _secret_keys(self._settings)[:1], context) is not None


def uses_key_file(settings: Settings) -> bool:
    """Whether the secret key is a file in the data folder rather than an environment variable."""
    return not settings.secret_key.get_secret_value()


def replace_key_file(settings: Settings) -> None:
    """Replace the key in the data folder. The old key stays in a second file until `drop_old_key_file`."""
    folder = _folder(settings)
    earlier = _file_keys(folder, create=True)
    # The old file first, so that no key is missing at any moment.
    _write(folder / OLD_KEY_FILE, b"\n".join(earlier)).replace(folder / OLD_KEY_FILE)
    _write(folder / KEY_FILE, secrets.token_hex(32).encode()).replace(folder / KEY_FILE)


def drop_old_key_file(settings: Settings) -> None:
    """Delete the earlier keys in the data folder. Secrets encrypted with them can no longer be decrypted."""
    (_folder(settings) / OLD_KEY_FILE).unlink(missing_ok=True)


def _secret_keys(settings: Settings, *, create: bool = True) -> list[bytes]:
    """The installation's keys, newest first: from the settings or, if embedded, from files in the data folder."""
    if uses_key_file(settings):
        if make_url(settings.resolved_database_url).get_backend_name() != "sqlite":
            raise SecretKeyError(
                "webhooks and the web pages need FEATUREWATCH_SECRET_KEY, the same one for the API and all workers; "
                "generate one with `openssl rand -hex 32`"
            )
        return [*_file_keys(_folder(settings), create=create), *_old_keys(settings)]
    key = settings.secret_key.get_secret_value()
    if len(key) < _MIN_LENGTH:
        raise SecretKeyError("FEATUREWATCH_SECRET_KEY is too short; generate one with `openssl rand -hex 32`")
    return [key.encode(), *_old_keys(settings)]


def _old_keys(settings: Settings) -> list[bytes]:
    if any(len(key) < _MIN_LENGTH for key in settings.old_secret_keys):
        raise SecretKeyError("FEATUREWATCH_SECRET_KEY_OLD contains a key that is too short")
    return [key.encode() for key in settings.old_secret_keys]


def _open(sealed: bytes, keys: list[bytes], context: str) -> bytes | None:
    """The plaintext, or None if no key can decrypt it."""
    nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
    for key in keys:
        try:
            return _cipher(key).decrypt(nonce, body, context.encode())
        except (InvalidTag, ValueError):
            continue
    return None


@lru_cache(maxsize=16)
def _cipher(key: bytes) -> AESGCM:
    return AESGCM(HKDF(algorithm=SHA256(), length=32, salt=None, info=b"featurewatch secrets v1").derive(key))


def _folder(settings: Settings) -> Path:
    return settings.data_dir.expanduser().resolve()


def _file_keys(folder: Path, *, create: bool) -> list[bytes]:
    """Keys in the data folder, newest first. Creates the first one if there is none."""
    path, old = folder / KEY_FILE, folder / OLD_KEY_FILE
    if not path.exists():
        if not create:
            raise SecretKeyError(
                f"{path} is missing; it contains the key that webhook secrets are encrypted with. Restore it from a "
                "backup, or set FEATUREWATCH_SECRET_KEY to its contents"
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = _write(path, secrets.token_hex(32).encode())
        try:
            # A link fails if the name is taken, so of two processes that start together only one creates the key.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    try:
        earlier = old.read_bytes().split()
    except FileNotFoundError:
        earlier = []
    return [path.read_bytes(), *earlier]


def _write(path: Path, text: bytes) -> Path:
    """Write a temporary file next to `path`, readable only by its owner, and flush it to disk."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink()
        raise
    return temporary
