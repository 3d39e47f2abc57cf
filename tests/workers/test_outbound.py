"""The guard of outgoing requests, and the encryption of secrets."""

import contextlib
import ipaddress
import socket
import threading
import time

import httpcore2
import httpx2
import pytest

from featurewatch.service.config import Settings
from featurewatch.service.kit import outbound
from featurewatch.service.kit.crypto import KEY_FILE, SecretBox, SecretKeyError

INSIDE = [
    "127.0.0.1", "127.8.9.10", "0.0.0.0", "0.1.2.3", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "100.64.0.1", "100.127.255.254", "192.0.0.8", "192.0.2.1", "192.88.99.1", "198.18.0.1", "198.19.255.255",
    "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.200.0.1",
    "::ffff:168.63.129.16", "::ffff:0:8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b::808:808",
    "64:ff9b:1::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::", "2001:2::1", "2001:1::1", "2001:20::1",
    "2001:1ff:ffff::1", "2001:db8::1", "3fff::1", "3fff:fff:ffff::1", "5f00::1", "100::1", "100:0:0:1::1", "4000::1",
    "fe80::1", "fc00::1", "fec0::1", "feff::1", "ff02::1", "ff0e::1",
]  # fmt: skip
METADATA = [
    "169.254.169.254", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192", "fd00:ec2::254",
    "fd20:ce::254", "fe80::a9fe:a9fe",
]  # fmt: skip
"""Of AWS, Google Cloud, Azure, Alibaba Cloud and Oracle Cloud: they give out credentials of the machine."""
HOSTS = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0x7f.1", "0", "169.254.169.254"]


@pytest.mark.parametrize("address", [*INSIDE, *METADATA])
def test_addresses_that_lead_inside(address):
    assert not outbound.is_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    [
        "8.8.8.8", "168.63.129.15", "172.32.0.1", "100.128.0.1", "192.0.1.1", "198.20.0.1", "223.255.255.254",
        "2606:4700:4700::1111", "2001:200::1", "2003::1", "2a00::1", "3ffe::1", "::ffff:8.8.8.8",
    ],
)  # fmt: skip
def test_addresses_of_the_internet(address):
    assert outbound.is_allowed(ipaddress.ip_address(address))


def test_an_operator_can_allow_networks():
    allow = outbound.parse_networks("10.1.0.0/16, 127.0.0.1/32,fd00::/8")
    inside = {address: outbound.is_allowed(ipaddress.ip_address(address), allow) for address in [*INSIDE, *METADATA]}
    assert {address for address, allowed in inside.items() if allowed} == {"127.0.0.1", "10.1.2.3", "fd00:ec2::254",
        "fd20:ce::254", "::ffff:127.0.0.1"}  # fmt: skip
    with pytest.raises(ValueError, match="elsewhere"):
        outbound.parse_networks("elsewhere")


@pytest.mark.parametrize("host", HOSTS)
def test_no_spelling_of_a_host_reaches_this_machine(host):
    with pytest.raises(outbound.AddressRefusedError, match="not allowed"):
        outbound.post(f"http://{host}:9/", body=b"", headers={})


def test_the_connected_peer_is_what_counts(monkeypatch):
    """A backend whose connection ends elsewhere than at the address that was checked, as behind a rewriting network."""
    server = socket.create_server(("127.0.0.1", 0))
    monkeypatch.setattr(outbound, "_resolve", lambda host, port: ["93.184.216.34"])

    class Rewriting(httpcore2.SyncBackend):
        def connect_tcp(self, host, port, *rest, **options):
            assert host == "93.184.216.34", "the checked address itself, not the name again"
            return super().connect_tcp("127.0.0.1", port, *rest, **options)

    backend = outbound._GuardedBackend((), 5.0)
    backend._plain = Rewriting()
    with server, pytest.raises(httpcore2.ConnectError, match="not allowed"):
        backend.connect_tcp("example.com", server.getsockname()[1], 5.0)


def test_a_slow_answer_ends_at_the_deadline_and_a_long_one_at_the_cap():
    server = socket.create_server(("127.0.0.1", 0))
    allow = outbound.parse_networks("127.0.0.1/32")
    url = f"http://127.0.0.1:{server.getsockname()[1]}/"

    def serve(feed):
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            with contextlib.suppress(OSError):
                feed(connection)

    def drip(connection):
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)

    def flood(connection):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            connection.sendall(b"x" * 65536)

    with server:
        threading.Thread(target=serve, args=(drip,), daemon=True).start()
        began = time.monotonic()
        with pytest.raises(httpx2.TimeoutException):
            outbound.post(url, body=b"", headers={}, allow=allow, total_seconds=1.0)
        assert time.monotonic() - began < 3
        threading.Thread(target=serve, args=(flood,), daemon=True).start()
        assert len(outbound.post(url, body=b"", headers={}, allow=allow).body) == outbound.RESPONSE_BYTES


def test_secrets_open_with_the_same_key_and_context_only(tmp_path):
    box = SecretBox(Settings(secret_key="a key that is long enough"))
    sealed = box.encrypt(b"whsec_x", context="whk_1")
    assert b"whsec" not in sealed
    assert sealed != box.encrypt(b"whsec_x", context="whk_1")
    assert SecretBox(Settings(secret_key="a key that is long enough")).decrypt(sealed, context="whk_1") == b"whsec_x"
    for other, context, text in [
        (box, "whk_2", sealed),
        (box, "whk_1", sealed[:-1] + bytes([sealed[-1] ^ 1])),
        (box, "whk_1", sealed[:5]),
        (box, "whk_1", b"\x07" + sealed),
        (SecretBox(Settings(secret_key="another key, long enough")), "whk_1", sealed),
    ]:
        with pytest.raises(SecretKeyError):
            other.decrypt(text, context=context)


def test_an_embedded_installation_makes_its_key_once(tmp_path):
    settings = Settings(data_dir=tmp_path / "data")
    boxes = []
    threads = [threading.Thread(target=lambda: boxes.append(SecretBox(settings))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sealed = boxes[0].encrypt(b"x", context="c")
    assert all(box.decrypt(sealed, context="c") == b"x" for box in boxes)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [KEY_FILE]
    assert (tmp_path / "data" / KEY_FILE).stat().st_mode & 0o777 == 0o600


def test_a_production_installation_must_name_its_key():
    with pytest.raises(SecretKeyError, match="FEATUREWATCH_SECRET_KEY"):
        SecretBox(Settings(database_url="postgresql+psycopg://db/featurewatch"))
    with pytest.raises(SecretKeyError, match="too short"):
        SecretBox(Settings(secret_key="short"))
