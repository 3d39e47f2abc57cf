"""Outgoing HTTP to URLs chosen by users, without access to the internal network (SSRF).

Own code, because no HTTP client checks addresses where it connects. Each address that a name resolves to is checked,
the connection goes to that address itself (another lookup could return a different one), and the connected peer is
checked again before anything is sent. Redirects are not followed, and proxies from the environment are ignored.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import httpcore2
import httpx2

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

CONNECT_SECONDS = 5.0
TOTAL_SECONDS = 15.0
RESPONSE_BYTES = 64 * 1024

# The IANA special-purpose address registries (IPv4 and IPv6), multicast, and cloud addresses. Listed in full although
# `is_global` knows most of them: it differs between versions of Python, and allows prefixes that embed an IPv4 address,
# which may be internal.
_REFUSED: tuple[Network, ...] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8",  # "this network"
        "10.0.0.0/8",  # private use
        "100.64.0.0/10",  # shared by carriers (CGNAT); 100.100.100.200 is Alibaba Cloud's metadata service
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's wire server, a public address that every Azure machine reaches
        "169.254.0.0/16",  # link-local; 169.254.169.254 is the metadata service of most clouds
        "172.16.0.0/12",  # private use
        "192.0.0.0/24",  # protocol assignments; 192.0.0.192 is Oracle Cloud's metadata service
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private use
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
        "2001::/23",  # protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")
"""All IPv6 addresses that IANA has allocated to hosts. Outside it are loopback, unique local (fc00::/7), link-local,
site-local (fec0::/10), multicast, NAT64 (64:ff9b::/96, 64:ff9b:1::/48), IPv4-compatible (::/96), discard-only
(100::/64) and segment routing (5f00::/16) addresses."""


class AddressRefusedError(httpx2.ConnectError):
    """The name resolves to an address that outgoing requests must not reach."""


class _RefusedError(httpcore2.ConnectError):
    """AddressRefusedError as an exception of the transport library."""


@dataclass(frozen=True)
class Reply:
    """Status and first bytes of a response."""

    status: int
    body: bytes
    seconds: float
    retry_after: str | None = None
    """Its Retry-After header; `clock.seconds_of` parses it."""


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks of a setting such as `10.1.0.0/16, fd00::/8`. ValueError if one is invalid."""
    return tuple(ipaddress.ip_network(part.strip(), strict=False) for part in text.split(",") if part.strip())


def is_allowed(address: Address, allow: Iterable[Network] = ()) -> bool:
    """Whether requests may go to `address`: a public unicast address, or one in a network that the operator allows."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if any(address.version == network.version and address in network for network in allow):
        return True
    if any(address.version == network.version and address in network for network in _REFUSED):
        return False
    return address.is_global and (address.version == 4 or address in _GLOBAL_UNICAST)


class _Deadlined(httpcore2.NetworkStream):
    """A stream whose reads and writes share one deadline. With timeouts per read, a slow peer could block forever."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def _left(self, timeout: float | None) -> float:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise httpcore2.ReadTimeout("the response took too long")
        return left if timeout is None else min(left, timeout)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._left(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._left(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, ssl_context, server_hostname=None, timeout=None):  # type: ignore[no-untyped-def]
        inner = self._stream.start_tls(ssl_context, server_hostname, self._left(timeout))
        return _Deadlined(inner, self._deadline)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)


class _GuardedBackend(httpcore2.NetworkBackend):
    """Connects only to checked addresses. Unix sockets are not implemented, and therefore refused."""

    def __init__(self, allow: tuple[Network, ...], total_seconds: float) -> None:
        self._allow = allow
        self._total_seconds = total_seconds
        self._plain = httpcore2.SyncBackend()

    def connect_tcp(  # type: ignore[no-untyped-def]
        self, host, port, timeout=None, local_address=None, socket_options=None
    ) -> httpcore2.NetworkStream:
        deadline = time.monotonic() + self._total_seconds
        refused = False
        failure: Exception = httpcore2.ConnectError(f"{host} has no address")
        for address in _resolve(host, port):
            if not is_allowed(_parse(address), self._allow):
                refused = True
                continue
            try:
                stream = self._plain.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
                continue
            if not is_allowed(_parse(stream.get_extra_info("server_addr")[0]), self._allow):
                stream.close()
                refused = True
                continue
            return _Deadlined(stream, deadline)
        if refused:
            # Without the address: the owner of the webhook sees this message.
            raise _RefusedError(f"{host} resolves to an address that is not allowed")
        raise failure


class GuardedTransport(httpx2.HTTPTransport):
    """A transport that only reaches public addresses and the networks in `allow`."""

    def __init__(self, allow: tuple[Network, ...] = (), total_seconds: float = TOTAL_SECONDS) -> None:
        # A new context would read all certificates again, which takes ten times as long as the request.
        super().__init__(verify=_tls(), trust_env=False)
        # The base class has no argument for the backend. Its pool has no connections yet and can be replaced.
        self._pool = httpcore2.ConnectionPool(
            ssl_context=_tls(),
            max_connections=1,
            max_keepalive_connections=0,
            network_backend=_GuardedBackend(allow, total_seconds),
        )

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        try:
            return super().handle_request(request)
        except httpx2.ConnectError as error:
            if isinstance(error.__cause__, _RefusedError):
                raise AddressRefusedError(str(error), request=request) from error
            raise


def post(
    url: str,
    *,
    body: bytes,
    headers: Mapping[str, str],
    allow: tuple[Network, ...] = (),
    total_seconds: float = TOTAL_SECONDS,
) -> Reply:
    """POST a body and read at most RESPONSE_BYTES of the response. Raises httpx2.HTTPError or AddressRefusedError."""
    start = time.monotonic()
    timeout = httpx2.Timeout(total_seconds, connect=min(CONNECT_SECONDS, total_seconds))
    with (
        httpx2.Client(
            transport=GuardedTransport(allow, total_seconds), trust_env=False, follow_redirects=False, timeout=timeout
        ) as client,
        client.stream("POST", url, content=body, headers={**headers, "Accept-Encoding": "identity"}) as response,
    ):
        # Raw: the response is text for the log, and a malicious compressed body could exhaust the memory.
        received = bytearray()
        for chunk in response.iter_raw():
            received += chunk
            if len(received) >= RESPONSE_BYTES:
                break
        wait = response.headers.get("retry-after")
        return Reply(response.status_code, bytes(received[:RESPONSE_BYTES]), time.monotonic() - start, wait)


@cache
def _tls() -> ssl.SSLContext:
    return httpx2.create_ssl_context()


def _resolve(host: str, port: int) -> list[str]:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(f"cannot resolve {host}: {error}") from error
    return list(dict.fromkeys(str(entry[4][0]) for entry in addresses))


def _parse(address: str) -> Address:
    return ipaddress.ip_address(address.split("%", 1)[0])  # without the zone of a link-local address
