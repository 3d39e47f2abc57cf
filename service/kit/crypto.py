"""Encryption at rest of what must be read again: the URLs of webhooks and the secrets that sign their deliveries.

AES-256-GCM under a key derived (HKDF-SHA256) from the installation's secret key. The context, e.g. the id of the row,
is authenticated too: a ciphertext that is copied into another row does not open there. While the key is rotated, what
earlier keys encrypted still opens (docs/adr/0033).
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
"""Earlier keys, one a line, while `featurewatch key rotate-secret` encrypts anew what they encrypted."""
_VERSION = b"\x01"
_NONCE_BYTES = 12
_LEAST_LENGTH = 16


class SecretKeyError(RuntimeError):
    """There is no usable SECRET_KEY, or it is not the one that something was encrypted with."""


class SecretBox:
    """Encrypts small secrets of one installation with its newest key, and decrypts them with any that it has.

    Keys in files are read at each use: a running process notices a rotation without a restart. `create` False: a
    missing key file is an error, since whatever was encrypted before needs the key that it held.
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
        """What `encrypt` was given with the same context; SecretKeyError where key, context or bytes differ."""
        if sealed[:1] != _VERSION:
            raise SecretKeyError("a stored secret has an unknown format")
        keys = _secret_keys(self._settings)
        plain = _open(sealed, keys, context)
        if plain is None and (now := _secret_keys(self._settings)) != keys:  # rotated in this moment
            plain = _open(sealed, now, context)
        if plain is None:
            raise SecretKeyError(
                "a stored secret does not open with this FEATUREWATCH_SECRET_KEY; was the key changed? Name the "
                "earlier one in FEATUREWATCH_SECRET_KEY_OLD"
            )
        return plain

    def is_current(self, sealed: bytes, *, context: str) -> bool:
        """Whether the newest key encrypted it."""
        return _open(sealed, _secret_keys(self._settings)[:1], context) is not None


def uses_key_file(settings: Settings) -> bool:
    """Whether the secret key is a file in the data folder; else it comes from the environment."""
    return not settings.secret_key.get_secret_value()


def replace_key_file(settings: Settings) -> None:
    """Put a new key in the place of the one in the data folder, which stays beside it until `drop_old_key_file`."""
    folder = _folder(settings)
    earlier = _file_keys(folder, create=True)
    # The old file first: at no moment is there a key missing.
    _write(folder / OLD_KEY_FILE, b"\n".join(earlier)).replace(folder / OLD_KEY_FILE)
    _write(folder / KEY_FILE, secrets.token_hex(32).encode()).replace(folder / KEY_FILE)


def drop_old_key_file(settings: Settings) -> None:
    """Forget the earlier keys in the data folder; what they encrypted does not open any more."""
    (_folder(settings) / OLD_KEY_FILE).unlink(missing_ok=True)


def _secret_keys(settings: Settings, *, create: bool = True) -> list[bytes]:
    """The installation's keys, the newest first: from the settings or, embedded only, from files in the data folder."""
    if uses_key_file(settings):
        if make_url(settings.resolved_database_url).get_backend_name() != "sqlite":
            raise SecretKeyError(
                "webhooks and the web pages need FEATUREWATCH_SECRET_KEY, the same one for the API and all workers; "
                "`openssl rand -hex 32` makes a good one"
            )
        return [*_file_keys(_folder(settings), create=create), *_old_keys(settings)]
    key = settings.secret_key.get_secret_value()
    if len(key) < _LEAST_LENGTH:
        raise SecretKeyError("FEATUREWATCH_SECRET_KEY is too short; `openssl rand -hex 32` makes a good one")
    return [key.encode(), *_old_keys(settings)]


def _old_keys(settings: Settings) -> list[bytes]:
    if any(len(key) < _LEAST_LENGTH for key in settings.old_secret_keys):
        raise SecretKeyError("FEATUREWATCH_SECRET_KEY_OLD names a key that is too short to have been one")
    return [key.encode() for key in settings.old_secret_keys]


def _open(sealed: bytes, keys: list[bytes], context: str) -> bytes | None:
    """The plaintext; None where none of the keys opens it."""
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
    """Keys in the data folder, the newest first. The first one is made here where there is none."""
    path, old = folder / KEY_FILE, folder / OLD_KEY_FILE
    if not path.exists():
        if not create:
            raise SecretKeyError(
                f"there is no {path}, which holds the key that webhook secrets are encrypted with: restore it from a "
                "backup, or set FEATUREWATCH_SECRET_KEY to its text"
            )
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = _write(path, secrets.token_hex(32).encode())
        try:
            # A link fails where the name is taken: of two processes that start together, one makes the key.
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
    """A file with this text beside `path`, on the disk, for its owner alone."""
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
