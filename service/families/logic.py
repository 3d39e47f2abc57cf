"""Families: making and finding them."""

from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.config import Settings
from featurewatch.service.families import queries
from featurewatch.service.families.schemas import FamilyIn
from featurewatch.service.kit.pages import Pager
from featurewatch.service.kit.paths import PathRefusedError, resolve_under_roots
from featurewatch.service.kit.problems import ConflictError, NotFoundError, UnprocessableError
from featurewatch.service.models import Family

BUILTIN_CORPORA = ("builtin:python-docs",)
_CORPUS_FILES = (".txt", ".jsonl")


def create(session: Session, settings: Settings, body: FamilyIn) -> tuple[Family, bool]:
    """Make a family. Returns it and whether it is new: the same content again gives the same family.

    Raises 409 where the name is used with other content, 422 for a corpus that may not be read.
    """
    found = queries.by_name(session, body.name)
    content = {
        "hook_points": body.hook_points,
        "corpus": body.corpus.model_dump(mode="json"),
        "crosscoder": body.crosscoder.model_dump(mode="json"),
        "policy": body.policy.model_dump(mode="json"),
    }
    if found is not None:
        there = FamilyIn.model_validate({"name": found.name} | {name: getattr(found, name) for name in content})
        other = [name for name in content if getattr(there, name) != getattr(body, name)]
        if other:
            raise ConflictError(
                f"The name {body.name} is used by a family with other {', '.join(other)}.", code="name-used"
            )
        return found, False
    _check_corpus(body.corpus.uri, settings)
    family = Family(name=body.name, positions=None, documents=None, **content)
    queries.add(session, family)
    return family, True


def get(session: Session, name: str) -> Family:
    """The family with this name, or 404."""
    family = queries.by_name(session, name)
    if family is None:
        raise NotFoundError(f"There is no family {name}.", code="unknown-family")
    return family


def page(session: Session, paging: Pager) -> tuple[list[Family], str | None]:
    """A page of all families, by name, and the cursor of the next one."""
    rows = queries.page(session, after=paging.after("families"), limit=paging.limit)
    return paging.page(rows, "families", lambda row: (row.name,))


def keep_documents(session: Session, family_id: str, copy: dict[str, Any]) -> dict[str, Any]:
    """Write which copy of its corpus a family is read on, unless that is known; the copy that counts."""
    family = session.get_one(Family, family_id)
    family.documents = family.documents or copy
    return family.documents


def _check_corpus(uri: str, settings: Settings) -> None:
    if uri in BUILTIN_CORPORA:
        return
    if not uri.startswith("file:"):
        raise UnprocessableError(
            f"A corpus is {' or '.join(BUILTIN_CORPORA)}, or a file:// URI; {uri!r} is neither.",
            code="uri-unsupported",
        )
    try:
        path = resolve_under_roots(uri, settings.root_dirs)
    except PathRefusedError as error:
        raise UnprocessableError(str(error), code="path-refused", title="Path outside the roots") from error
    # A path that is not in sight may still be in the workers' sight, and they say what is wrong with it.
    if path.is_file() and path.suffix not in _CORPUS_FILES:
        raise UnprocessableError(f"A corpus file is .txt or .jsonl, not {path.suffix!r}.", code="corpus-invalid")
