"""Dependencies that give a route the checkpoint in its path, looked up once per request."""

from typing import Annotated

from fastapi import Depends

from featurewatch.service.checkpoints import logic
from featurewatch.service.families.lookup import ReadFamily, WriteFamily
from featurewatch.service.kit.sessions import ReadSession, WriteSession
from featurewatch.service.models import Checkpoint


def _to_read(family: ReadFamily, name: str, session: ReadSession) -> Checkpoint:
    return logic.get(session, family, name)


def _to_write(family: WriteFamily, name: str, session: WriteSession) -> Checkpoint:
    return logic.get(session, family, name)


ReadCheckpoint = Annotated[Checkpoint, Depends(_to_read)]
WriteCheckpoint = Annotated[Checkpoint, Depends(_to_write)]
