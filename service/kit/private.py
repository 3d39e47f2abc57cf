"""Files of an installation are for the user that runs it: models, corpora and keys are nobody else's business."""

import os

import structlog

from featurewatch.service.config import Settings

log = structlog.get_logger("featurewatch.private")

_UMASK = 0o077


def keep_private(settings: Settings) -> int:
    """Make what this process writes from now on 0600, folders 0700, and a data folder that is there 0700.

    Nothing is changed where the operator shares the folder (FEATUREWATCH_PRIVATE_FILES=false). Returns the umask of
    before. Called where a process starts: libraries and forked children write by the same umask.
    """
    before = os.umask(_UMASK)
    if not settings.private_files:
        os.umask(before)
        return before
    folder = settings.data_dir.expanduser()
    if folder.is_dir() and folder.stat().st_mode & _UMASK:
        try:
            folder.chmod(0o700)
        except PermissionError:  # a volume of somebody else that we may write to
            log.warning(
                "the data folder belongs to another user and is open to others: make it 0700, or set "
                "FEATUREWATCH_PRIVATE_FILES=false if it is shared on purpose",
                folder=str(folder),
            )
    return before
