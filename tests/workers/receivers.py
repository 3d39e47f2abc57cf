"""Receivers of webhooks, good and bad, and a name server that changes its mind: real sockets on loopback."""

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import dns.flags
import dns.message
import dns.rdatatype
import dns.resolver
import dns.rrset
from sqlalchemy import select
from standardwebhooks import Webhook as Verifier
from standardwebhooks import WebhookVerificationError

from featurewatch.service.kit.db import Database
from featurewatch.service.models import Delivery
from featurewatch.service.webhooks import logic


class Receiver:
    """An HTTP server that keeps what it gets, and answers as it is told.

    `answer` is called for each request that `answers` has no status for. With `secrets`, a request without a good
    signature of each of them is answered 401, whatever it was told.
    """

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.answer: Callable[[], int] = lambda: 204
        self.headers: dict[str, str] = {}
        self.body = b"told \0 you " * 200
        self.secrets: list[str] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = dict(self.headers.items())
                receiver.requests.append((self.path, headers, body))
                status = receiver.answers.pop(0) if receiver.answers else receiver.answer()
                try:
                    for secret in receiver.secrets:
                        Verifier(secret).verify(body, headers)
                except WebhookVerificationError:
                    status = 401
                self.send_response(status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                answer = b"" if status == 204 else receiver.body
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128  # more senders at once than the default of 5 lets wait

        self.server = Server((address, port), Handler)
        self.url = f"http://{address}:{self.server.server_port}/hook?from=tests"
        _serve(self.server)

    def ids(self) -> list[str]:
        """`webhook-id` of each request."""
        return [headers["webhook-id"] for _, headers, _ in self.requests]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def rude(behave: Callable[[socket.socket], object]) -> Iterator[str]:
    """URL of a server that reads a request and then does as it likes with the connection."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            # All of it: a connection that is closed with something unread in it is reset, whatever was answered.
            lines = iter(lambda: self.rfile.readline().strip(), b"")  # also at an end before the headers'
            headers = dict(line.decode().lower().split(": ") for line in lines if b": " in line)
            self.rfile.read(int(headers.get("content-length", 0)))
            with suppress(OSError):
                behave(self.request)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        _serve(server)
        yield f"http://127.0.0.1:{server.server_address[1]}/hook"
        server.shutdown()


@contextmanager
def name_server(answers: list[list[str]]) -> Iterator[list[str]]:
    """Look-ups of names ask a server of ours, which gives these IPv4 addresses, a list for each question, for no time.

    Yields the names that it was asked for. The last answer is repeated.
    """
    asked: list[str] = []

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            data, connection = self.request
            query = dns.message.from_wire(data)
            (question,) = query.question
            response = dns.message.make_response(query)
            response.flags |= dns.flags.RA
            if question.rdtype == dns.rdatatype.A:
                asked.append(question.name.to_text(omit_final_dot=True))
                addresses = answers.pop(0) if len(answers) > 1 else answers[0]
                response.answer.append(dns.rrset.from_text(question.name, 0, "IN", "A", *addresses))
            connection.sendto(response.to_wire(), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Handler) as server:
        _serve(server)
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], server.server_address[1]
        resolver.timeout = resolver.lifetime = 30.0  # it asks once, however busy the machine is
        dns.resolver.override_system_resolver(resolver)
        try:
            yield asked
        finally:
            dns.resolver.restore_system_resolver()
            server.shutdown()


def emit(database: Database, key: str = "1", type_: str = "checkpoint.judged", **data: Any) -> str:
    """Store an event; its id."""
    with database.write() as session:
        return logic.emit(session, type=type_, family_id=None, data=data or {"checkpoint": "v2 – é"}, key=key).id


def only(database: Database, model: Any = Delivery) -> Any:
    """The one row of a table."""
    with database.read() as session:
        return session.scalars(select(model)).one()


def log_of(database: Database, webhook_id: str) -> list[tuple[int | None, str | None]]:
    """(status, error) of each attempt at the webhook's one delivery."""
    with database.read() as session:
        delivery = session.scalars(select(Delivery).where(Delivery.webhook_id == webhook_id)).one()
        return [(entry["status"], entry["error"]) for entry in delivery.log]


def _serve(server: socketserver.BaseServer) -> None:
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
