"""Optional extras of the installation."""

from featurewatch.service import __version__

SOURCE = f"git+https://github.com/featurewatch/featurewatch@v{__version__}"
"""Where pip gets this version. A bare `featurewatch` could be any package of that name in an index."""


def install(*extras: str) -> str:
    """The pip command that adds extras of pyproject.toml."""
    return f"pip install 'featurewatch[{','.join(extras)}] @ {SOURCE}'"
