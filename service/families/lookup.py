"""Dependencies that give a route the family in its path, looked up once per request and in the request's session."""

from typing import Annotated

from fastapi import Depends

from featurewatch.service.families import logic
from featurewatch.service.kit.sessions import ReadSession, WriteSession
from featurewatch.service.models import Family


def _to_read(family: str, session: ReadSession) -> Family:
    return logic.get(session, family)


def _to_write(family: str, session: WriteSession) -> Family:
    return logic.get(session, family)


ReadFamily = Annotated[Family, Depends(_to_read)]
WriteFamily = Annotated[Family, Depends(_to_write)]
