"""Creates families and looks them up."""

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
    """Create a family. Returns it and whether it is new; the same content again returns the existing family.

    Raises 409 if the name is used with different content, 422 for a corpus that is not allowed.
    """
    existing = queries.by_name(session, body.name)
    content = {
        "hook_points": body.hook_points,
        "corpus": body.corpus.model_dump(mode="json"),
        "crosscoder": body.crosscoder.model_dump(mode="json"),
        "policy": body.policy.model_dump(mode="json"),
    }
    if existing is not None:
        stored = FamilyIn.model_validate({"name": existing.name} | {name: getattr(existing, name) for name in content})
        different = [name for name in content if getattr(stored, name) != getattr(body, name)]
        if different:
            raise ConflictError(
                f"A family {body.name} with different {', '.join(different)} already exists.", code="name-used"
            )
        return existing, False
    _check_corpus(body.corpus.uri, settings)
    family = Family(name=body.name, positions=None, documents=None, **content)
    session.add(family)
    session.flush()
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
    """Record the copy of its corpus that a family uses, unless one is recorded. Returns the copy in use."""
    family = session.get_one(Family, family_id)
    family.documents = family.documents or copy
    return family.documents


def _check_corpus(uri: str, settings: Settings) -> None:
    if uri in BUILTIN_CORPORA:
        return
    if not uri.startswith("file:"):
        raise UnprocessableError(
            f"Unsupported corpus {uri!r}. Use {' or '.join(BUILTIN_CORPORA)}, or a file:// URI.",
            code="uri-unsupported",
        )
    try:
        path = resolve_under_roots(uri, settings.root_dirs)
    except PathRefusedError as error:
        raise UnprocessableError(str(error), code="path-refused", title="Path outside the allowed roots") from error
    # Workers may see paths that this host cannot; they report what is wrong with them.
    if path.is_file() and path.suffix not in _CORPUS_FILES:
        raise UnprocessableError(f"A corpus file must be .txt or .jsonl, not {path.suffix!r}.", code="corpus-invalid")
