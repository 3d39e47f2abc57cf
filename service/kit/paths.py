"""Which local files a request may name: those under the configured roots, symbolic links resolved."""

from pathlib import Path
from urllib.parse import unquote, urlsplit


class PathRefusedError(ValueError):
    """A local path that is not under a configured root."""


def resolve_under_roots(uri: str, roots: tuple[Path, ...]) -> Path:
    """Local path of a `file://` URI; PathRefusedError where it is relative or outside every root.

    The path need not exist. Links are followed first: a link inside a root that leads out of it is outside.
    """
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise PathRefusedError(f"{uri!r} is no local file URI; one looks like file:///folder")
    if parts.query or parts.fragment:
        raise PathRefusedError(f"{uri!r} has a query or a fragment; write ? as %3F and # as %23")
    path = Path(unquote(parts.path))
    if not path.is_absolute() or "\0" in str(path):
        raise PathRefusedError(f"{uri!r} is not an absolute path; write file:///folder")
    return hold_to_roots(path, roots)


def hold_to_roots(path: Path, roots: tuple[Path, ...]) -> Path:
    """A path with its links resolved; PathRefusedError where that is outside every root."""
    resolved = path.resolve()
    if not any(resolved.is_relative_to(root) for root in roots):
        raise PathRefusedError(
            f"{path} is outside the configured roots; add its folder to FEATUREWATCH_ROOTS on the server and workers"
        )
    return resolved
