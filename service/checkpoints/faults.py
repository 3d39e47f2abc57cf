"""What is wrong with a checkpoint's files, as one error class with a code that workers use too."""

from featurewatch.service.kit.problems import UnprocessableError

TITLES = {
    "uri-unsupported": "No such kind of URI",
    "path-refused": "Path outside the roots",
    "content-changed": "The files changed",
    "store-refused": "Store not allowed",
    "model-missing": "Nothing to read there",
    "unsafe-format": "Pickles are not opened",
    "weights-missing": "No weights",
    "truncated-file": "Truncated or damaged file",
    "too-large": "Larger than is read",
    "config-mismatch": "The config does not fit the weights",
    "adapter-missing": "No adapter",
    "adapter-unsupported": "Unsupported adapter",
    "adapter-mismatch": "The adapter does not fit",
    "shard-missing": "A file is missing",
    "path-escapes": "A file name leads out of the folder",
    "manifest-missing": "No manifest",
    "manifest-invalid": "Unusable manifest",
    "wrong-dtype": "Wrong data type",
    "wrong-width": "Wrong width",
    "wrong-positions": "Other positions than the family's",
    "unknown-hook-point": "No such hook point",
}


class UnusableError(UnprocessableError):
    """Files that cannot be a checkpoint. `code` is one of TITLES; `detail` names file and reason."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(detail, code=code, title=TITLES[code])
