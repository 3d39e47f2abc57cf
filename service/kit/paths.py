"""Which local files a request may name: those under the configured roots, with symbolic links resolved."""

from pathlib import Path
from urllib.parse import unquote, urlsplit


class PathRefusedError(ValueError):
    """A local path that is not under a configured root."""


def resolve_under_roots(uri: str, roots: tuple[Path, ...]) -> Path:
    """Local path of a `file://` URI. PathRefusedError if it is relative or outside every root.

    The path need not exist. Symbolic links are resolved first, so a link that leads out of a root is refused.
    """
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise PathRefusedError(f"{uri!r} is not a local file URI such as file:///folder")
    if parts.query or parts.fragment:
        raise PathRefusedError(f"{uri!r} has a query or a fragment; write ? as %3F and # as %23")
    path = Path(unquote(parts.path))
    if not path.is_absolute() or "\0" in str(path):
        raise PathRefusedError(f"{uri!r} is not an absolute path; write file:///folder")
    return hold_to_roots(path, roots)


def hold_to_roots(path: Path, roots: tuple[Path, ...]) -> Path:
    """A path with its symbolic links resolved. PathRefusedError if that is outside every root."""
    resolved = path.resolve()
    if not any(resolved.is_relative_to(root) for root in roots):
        raise PathRefusedError(
            f"{path} is outside the configured roots; add its folder to FEATUREWATCH_ROOTS on the server and workers"
        )
    return resolved
