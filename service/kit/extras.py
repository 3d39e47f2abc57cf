"""Optional parts of the installation: how to add one."""

from featurewatch.service import __version__

SOURCE = f"git+https://github.com/featurewatch/featurewatch@v{__version__}"
"""Where pip takes this version from. A bare `featurewatch` would be whatever an index has under that name."""


def install(*extras: str) -> str:
    """The command that adds extras of pyproject.toml to an installation."""
    return f"pip install 'featurewatch[{','.join(extras)}] @ {SOURCE}'"
