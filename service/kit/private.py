"""File permissions: the models, corpora and keys of an installation are private to the user that runs it."""

import os

import structlog

from featurewatch.service.config import Settings

log = structlog.get_logger("featurewatch.private")

_UMASK = 0o077


def keep_private(settings: Settings) -> int:
    """Make new files 0600 and new folders 0700, and an existing data folder 0700.

    Nothing changes if the operator shares the folder (FEATUREWATCH_PRIVATE_FILES=false). Returns the previous umask.
    Call it when a process starts: libraries and forked children use the same umask.
    """
    previous = os.umask(_UMASK)
    if not settings.private_files:
        os.umask(previous)
        return previous
    folder = settings.data_dir.expanduser()
    if folder.is_dir() and folder.stat().st_mode & _UMASK:
        try:
            folder.chmod(0o700)
        except PermissionError:  # a writable volume of another user
            log.warning(
                "the data folder belongs to another user and others can read it: make it 0700, or set "
                "FEATUREWATCH_PRIVATE_FILES=false if it is shared on purpose",
                folder=str(folder),
            )
    return previous
