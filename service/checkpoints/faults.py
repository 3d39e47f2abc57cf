"""Errors in a checkpoint's files: one class for the API and the workers, with a stable code."""

from featurewatch.service.kit.problems import UnprocessableError

TITLES = {
    "uri-unsupported": "Unsupported URI",
    "path-refused": "Path outside the allowed roots",
    "content-changed": "Files changed",
    "store-refused": "Store not allowed",
    "model-missing": "Model not found",
    "unsafe-format": "Unsafe file format",
    "weights-missing": "Weights not found",
    "truncated-file": "Truncated or corrupt file",
    "too-large": "File too large",
    "config-mismatch": "Config does not match the weights",
    "adapter-missing": "Adapter not found",
    "adapter-unsupported": "Unsupported adapter",
    "adapter-mismatch": "Adapter config does not match its weights",
    "shard-missing": "File not found",
    "path-escapes": "Reference outside the folder",
    "manifest-missing": "Manifest not found",
    "manifest-invalid": "Invalid manifest",
    "wrong-dtype": "Wrong data type",
    "wrong-width": "Wrong width",
    "wrong-positions": "Positions do not match the family's",
    "unknown-hook-point": "Unknown hook point",
}


class UnusableError(UnprocessableError):
    """The files are not a usable checkpoint. `code` is a key of TITLES; `detail` names the file and the reason."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail, code=code, title=TITLES[code])
