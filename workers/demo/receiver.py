"""A webhook receiver: a small HTTP server on loopback that collects deliveries with a valid signature."""

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from standardwebhooks import Webhook, WebhookVerificationError


class Receiver:
    """Receives webhooks at `url` while it is open. Call `trust` with the secret first.

    A repeated delivery (same `webhook-id`) counts once. One with a bad signature gets a 401 and counts in `refused`.
    """

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.refused = 0
        self._seen: set[str] = set()
        self._secret: str | None = None
        self._arrived = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, name="webhook-receiver", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/featurewatch"

    def trust(self, secret: str) -> None:
        """Verify signatures with this `whsec_` secret."""
        self._secret = secret

    def take(self, body: bytes, headers: dict[str, str]) -> int:
        """Verify and store one delivery. Returns the HTTP status of the answer."""
        with self._arrived:
            try:
                if self._secret is None:
                    raise WebhookVerificationError("the secret is not known yet")
                Webhook(self._secret).verify(body, headers)
                payload = json.loads(body)
            except (WebhookVerificationError, ValueError):
                self.refused += 1
                return 401
            if headers["webhook-id"] not in self._seen:
                self._seen.add(headers["webhook-id"])
                self.events.append(payload)
                self._arrived.notify_all()
            return 204

    def wait_for(self, wanted: set[tuple[str, str]], timeout: float) -> set[tuple[str, str]]:
        """Wait for all (event type, checkpoint name) until the timeout. Returns those that are missing."""
        with self._arrived:
            self._arrived.wait_for(lambda: not wanted - self._kinds(), timeout)
            return wanted - self._kinds()

    def _kinds(self) -> set[tuple[str, str]]:
        return {(str(event["type"]), checkpoint_of(event)) for event in self.events}

    def __enter__(self) -> "Receiver":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def checkpoint_of(event: Mapping[str, Any]) -> str:
    """Name of the event's checkpoint; empty if it has none."""
    data = event.get("data") or {}
    return str(data.get("checkpoint") or (data.get("alert") or {}).get("checkpoint") or "")


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            length = int(self.headers.get("content-length") or 0)
            headers = {name.lower(): value for name, value in self.headers.items()}
            status = receiver.take(self.rfile.read(min(length, 1_000_000)), headers)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Silent: the demo prints what it received."""

    return Handler
