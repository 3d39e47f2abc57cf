"""Browsers: a sealed cookie names the session, and holds the token that every form of the page sends back.

The cookie holds the id of a row of `web_session`, not the key, under AES-GCM: nobody who sees the cookie jar has a
key. Signing out removes the row, so no copy of the cookie opens anything any more; a key that is revoked or expires
ends its sessions at once. The cookie opens the pages alone: `/v1` takes none, so no other site's page can write there
in a reader's name (docs/adr/0034).
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
"""Over https it has the prefix `__Host-`: no other host of the domain can set it."""
SECONDS = int(SESSION_LENGTH.total_seconds())
_CONTEXT = "visit of a browser"


@dataclass(frozen=True)
class Visit:
    """What a cookie holds."""

    session_id: str | None
    """None: nobody signed in (yet)."""
    token: str
    """Comes back with every form: a page of another site cannot know it."""
    until: float
    """Unix time."""

    def knows(self, token: str) -> bool:
        """Whether a form's token is this visit's, in constant time."""
        return hmac.compare_digest(self.token.encode(), token.encode())


def begin(session_id: str | None = None) -> Visit:
    """A visit that begins now."""
    return Visit(session_id, secrets.token_urlsafe(24), time.time() + SECONDS)


def cookie_name(scheme: str) -> str:
    """The cookie's name over http or https."""
    return f"__Host-{COOKIE}" if scheme == "https" else COOKIE


class Visits:
    """Seals visits into cookies and opens them, with the installation's SECRET_KEY."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _box(self) -> SecretBox:
        try:
            return SecretBox(self._settings)
        except SecretKeyError as error:
            raise UnavailableError(str(error), code="secret-key-missing") from error

    def seal(self, visit: Visit) -> str:
        """The cookie of a visit. Raises 503 where the installation has no SECRET_KEY."""
        plain = json.dumps([visit.session_id, visit.token, visit.until]).encode()
        return base64.urlsafe_b64encode(self._box.encrypt(plain, context=_CONTEXT)).decode().rstrip("=")

    def open(self, cookie: str) -> Visit | None:
        """The visit of a cookie; None for one that is not ours, or is over."""
        try:
            sealed = base64.urlsafe_b64decode(cookie + "=" * (-len(cookie) % 4))
            session_id, token, until = json.loads(self._box.decrypt(sealed, context=_CONTEXT))
        except (binascii.Error, ValueError, SecretKeyError, UnavailableError):
            return None
        return Visit(session_id, token, until) if until > time.time() else None
