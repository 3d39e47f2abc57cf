"""Reads a checkpoint's JSON files, with limits that apply before parsing."""

import json
from pathlib import Path
from typing import Any

from featurewatch.service.checkpoints.faults import UnusableError

# The longest config.json of a language model is about 100 kB, or a megabyte with names of quantised modules.
MAX_JSON_BYTES = 2_000_000
# An empty list takes 25 times its text in memory and slows the garbage collector. Configs have a few hundred.
MAX_CONTAINERS = 20_000


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object from a file. Raises UnusableError `too-large`, or `truncated-file` for anything else."""
    with path.open("rb") as file:
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise UnusableError("too-large", f"{path.name} is larger than {max_bytes:,} bytes.")
    if raw.count(b"[") + raw.count(b"{") > MAX_CONTAINERS:
        raise UnusableError("too-large", f"{path.name} has more than {MAX_CONTAINERS:,} lists and objects.")
    try:
        value = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UnusableError("truncated-file", f"{path.name} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise UnusableError("truncated-file", f"{path.name} does not contain a JSON object.")
    return value
