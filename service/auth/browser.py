"""Browser sessions: an encrypted cookie with the session id and the CSRF token that every form sends back.

The cookie contains the id of a `web_session` row under AES-GCM, never the key itself. Signing out deletes the row, so
copies of the cookie become useless; revoking or expiring a key ends its sessions at once. The cookie works for the
pages only: `/v1` ignores it, so no other site can write there in a user's name (docs/adr/0034).
"""

import base64
import binascii
import hmac
import json
import secrets
import time
from dataclasses import dataclass
from functools import cached_property

from featurewatch.service.auth.logic import SESSION_LENGTH
from featurewatch.service.config import Settings
from featurewatch.service.kit.crypto import SecretBox, SecretKeyError
from featurewatch.service.kit.problems import UnavailableError

COOKIE = "fw_visit"
"""Over https it has the prefix `__Host-`, so that no other host of the domain can set it."""
SECONDS = int(SESSION_LENGTH.total_seconds())
_CONTEXT = "visit of a browser"


@dataclass(frozen=True)
class Visit:
    """The contents of a cookie."""

    session_id: str | None
    """None if nobody has signed in."""
    token: str
    """CSRF token, sent back with every form. Pages of other sites cannot know it."""
    until: float
    """Unix time."""

    def knows(self, token: str) -> bool:
        """Whether a form's token matches, in constant time."""
        return hmac.compare_digest(self.token.encode(), token.encode())


def begin(session_id: str | None = None) -> Visit:
    """Start a visit now."""
    return Visit(session_id, secrets.token_urlsafe(24), time.time() + SECONDS)


def cookie_name(scheme: str) -> str:
    """The cookie's name over http or https."""
    return f"__Host-{COOKIE}" if scheme == "https" else COOKIE


class Visits:
    """Encrypts visits into cookies and decrypts them with the installation's SECRET_KEY."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _box(self) -> SecretBox:
        try:
            return SecretBox(self._settings)
        except SecretKeyError as error:
            raise UnavailableError(str(error), code="secret-key-missing") from error

    def seal(self, visit: Visit) -> str:
        """The cookie of a visit. Raises 503 if the installation has no SECRET_KEY."""
        plain = json.dumps([visit.session_id, visit.token, visit.until]).encode()
        return base64.urlsafe_b64encode(self._box.encrypt(plain, context=_CONTEXT)).decode().rstrip("=")

    def open(self, cookie: str) -> Visit | None:
        """The visit in a cookie; None if it is invalid or expired."""
        try:
            sealed = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
            session_id, token, until = json.loads(self._box.decrypt(sealed, context=_CONTEXT))
        except (binascii.Error, ValueError, SecretKeyError, UnavailableError):
            return None
        return Visit(session_id, token, until) if until > time.time() else None
