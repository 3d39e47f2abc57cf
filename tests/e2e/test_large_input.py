"""Files that are made to cost memory and time: the API refuses each at once, stays small and goes on answering."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from featurewatch.service.client import ApiError
from tests.e2e.parts import ONE_DATABASE, Service
from tests.unit.checkpoints import raw
from tests.unit.checkpoints.test_gguf import MALFORMED, write_malformed

GROWTH_BYTES = 100_000_000
# On a quiet machine it is a tenth of a second; others may keep this one busy.
ANSWER_SECONDS = 5.0


@pytest.fixture(scope="module")
def folder(service: Service) -> Path:
    """Where this module's files are; its family is `large`."""
    service.client.create_family("large", ["resid_post.1"])
    folder = service.folder / "large"
    folder.mkdir()
    return folder


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS:"))


@contextmanager
def stays_small_and_answers(service: Service) -> Iterator[None]:
    """Look at the API's memory, and ask it for its health, again and again until the block ends."""
    before = resident(service.process.pid)
    ended = threading.Event()

    def watch() -> tuple[int, float]:
        most, slowest = before, 0.0
        while not ended.is_set():
            began = time.monotonic()
            urlopen(f"{service.client.url}/healthz", timeout=60).close()
            slowest = max(slowest, time.monotonic() - began)
            most = max(most, resident(service.process.pid))
        return most, slowest

    with ThreadPoolExecutor(1) as pool:
        watching = pool.submit(watch)
        try:
            yield
        finally:
            ended.set()
        most, slowest = watching.result()
    assert most - before < GROWTH_BYTES
    assert slowest < ANSWER_SECONDS


def code_of(service: Service, uri: str, adapter: str | None = None) -> str:
    """What a registration is refused with."""
    with pytest.raises(ApiError) as caught:
        service.client.register("large", name="v1", uri=uri, adapter=adapter)
    assert caught.value.status == 422
    return str(caught.value.code)


def model(folder: Path, header: bytes, layers: int = 2) -> str:
    """The URI of a model that has nothing but a config and this header."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": layers}))
    raw.write_safetensors(folder / "model.safetensors", header)
    return f"file://{folder}"


def header(tensors: int) -> bytes:
    """Tensors without values, each in a layer of its own."""
    entry = b'"model.layers.%d.w":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    return b"{" + b",".join(entry % number for number in range(tensors)) + b"}"


@ONE_DATABASE
def test_large_headers_four_at_once(service: Service, folder: Path) -> None:
    for name, tensors, code in [("81 MB", 1_080_000, "too-large"), ("0.4 MB", 5_000, "config-mismatch")]:
        uri = model(folder / name.replace(" ", "-"), header(tensors))
        with stays_small_and_answers(service), ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _, uri=uri: code_of(service, uri), range(4))) == [code] * 4, name


@ONE_DATABASE
def test_nested_configs_and_two_million_layers(service: Service, folder: Path) -> None:
    with stays_small_and_answers(service):
        assert code_of(service, model(folder / "layers", header(10), layers=2_000_000)) == "config-mismatch"
        uri = model(folder / "nested", header(2))
        (folder / "nested" / "config.json").write_text('{"a": [' + "[]," * 90_000 + "[]]}")
        assert code_of(service, uri) == "too-large"


@ONE_DATABASE
def test_malformed_gguf_files(service: Service, folder: Path) -> None:
    with stays_small_and_answers(service):
        for name, (_, code, _) in MALFORMED.items():
            file = write_malformed(folder / "model.gguf", name)
            assert code_of(service, f"file://{file}") == code, name


@ONE_DATABASE
def test_adapters_that_are_not_read(service: Service, folder: Path) -> None:
    adapter = folder / "adapter"
    adapter.mkdir()
    raw.write_safetensors(adapter / "adapter_model.safetensors", {})
    uri = model(folder / "base", header(2))
    with stays_small_and_answers(service):
        for changes in (
            {"target_modules": "(.*a*)*$"},
            {"rank_pattern": {"(.*a*)*": 1}},
            {"peft_type": "SHADOW", "shadow_model": "/etc/shadow.bin"},
            {"peft_type": "XLORA", "adapters": {"0": "/etc/adapter"}},
        ):
            config = {"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"], **changes}
            (adapter / "adapter_config.json").write_text(json.dumps(config))
            assert code_of(service, uri, f"file://{adapter}") == "adapter-unsupported"
