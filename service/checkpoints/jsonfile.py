"""JSON files of checkpoints: bounded before they are parsed."""

import json
from pathlib import Path
from typing import Any

from featurewatch.service.checkpoints.faults import UnusableError

# The longest config.json of language models have some 100 kB, with names of quantised modules a megabyte.
MAX_JSON_BYTES = 2_000_000
# Empty lists take 25 times their text in memory, and the garbage collector's time. Configs have some hundred.
MAX_CONTAINERS = 20_000


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """A JSON object from a file. UnusableError `too-large`, or `truncated-file` where it is not one."""
    with path.open("rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise UnusableError("too-large", f"{path.name} has more than {max_bytes:,} bytes.")
    if raw.count(b"[") + raw.count(b"{") > MAX_CONTAINERS:
        raise UnusableError("too-large", f"{path.name} has more than {MAX_CONTAINERS:,} lists and objects.")
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnusableError("truncated-file", f"{path.name} is damaged: {error}.") from error
    if not isinstance(value, dict):
        raise UnusableError("truncated-file", f"{path.name} holds no JSON object.")
    return value
