"""Encryption at rest of what must be read again, such as the secrets that webhooks are signed with.

AES-256-GCM under a key derived (HKDF-SHA256) from the installation's SECRET_KEY. The context, e.g. the id of the row,
is authenticated too: a ciphertext that is copied into another row does not open there.
"""

import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from sqlalchemy.engine import make_url

from service.config import Settings

KEY_FILE = "secret.key"
_VERSION = b"\x01"
_NONCE_BYTES = 12


class SecretKeyError(RuntimeError):
    """There is no usable SECRET_KEY, or it is not the one that something was encrypted with."""


class SecretBox:
    """Encrypts and decrypts small secrets of one installation."""

    def __init__(self, settings: Settings) -> None:
        derive = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"featurewatch secrets v1")
        self._cipher = AESGCM(derive.derive(secret_key(settings)))

    def encrypt(self, plain: bytes, *, context: str) -> bytes:
        """Version byte, nonce and ciphertext."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, plain, context.encode())

    def decrypt(self, sealed: bytes, *, context: str) -> bytes:
        """What `encrypt` was given with the same context; SecretKeyError where key, context or bytes differ."""
        if sealed[:1] != _VERSION:
            raise SecretKeyError("a stored secret has an unknown format")
        nonce, body = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, body, context.encode())
        except (InvalidTag, ValueError):
            raise SecretKeyError(
                "a stored secret does not open with this FEATUREWATCH_SECRET_KEY; was the key changed?"
            ) from None


def secret_key(settings: Settings) -> bytes:
    """The installation's key material: from the settings or, embedded only, from a file made at the first need."""
    given = settings.secret_key.get_secret_value()
    if given:
        if len(given) < 16:
            raise SecretKeyError("FEATUREWATCH_SECRET_KEY is too short; `openssl rand -hex 32` makes a good one")
        return given.encode()
    if make_url(settings.resolved_database_url).get_backend_name() != "sqlite":
        raise SecretKeyError(
            "webhook secrets and the web pages need FEATUREWATCH_SECRET_KEY, the same one for the API and all workers; "
            "`openssl rand -hex 32` makes a good one"
        )
    return _key_file(settings.data_dir.expanduser().resolve())


def _key_file(folder: Path) -> bytes:
    path = folder / KEY_FILE
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{KEY_FILE}.{secrets.token_hex(8)}"
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_hex(32).encode())
                file.flush()
                os.fsync(file.fileno())
            # A link fails where the name is taken: of two processes that start together, one makes the key.
            os.link(temporary, path)
        except FileExistsError:
            pass
        finally:
            temporary.unlink(missing_ok=True)
    return path.read_bytes()
