"""Damaged and missing artifacts: what depends on one, how to get it back, and what a retry makes anew by itself."""

import re
from typing import Any

from sqlalchemy.orm import Session

from service.kit.artifacts import ArtifactStore, DamagedArtifactError
from service.store import queries

_BACKUP = "Restore it from a backup of the artifact store"
_FIT = (
    f"{_BACKUP}. Without one the dictionary is lost: make a new family and register the checkpoints again; "
    "`fit: refit` on the family's next checkpoint needs the old dictionary too"
)
_AGAIN = "Retry the run: it is made again"
# Kind of an artifact -> how to get it back.
REBUILD = {
    "activations": "Retry the run: the checkpoint is read again, if its files are where they were",
    "code": _FIT,
    "contrast": f"{_BACKUP}, or delete the signature and create it again from its rows",
    "contrast-activations": f"{_BACKUP}, or delete the signature and create it again",
    "dependencies": "Start `featurewatch dependencies` for the feature again",
    "dictionary": f"{_BACKUP}, or register the checkpoint's files again under another name, as a child of its parent",
    "documents": f"{_BACKUP}: it is the family's copy of its corpus",
    "examples": f"{_BACKUP}; the verdicts do not depend on it",
    "lineage": _AGAIN,
    "measures": _AGAIN,
    "positions": f"{_BACKUP}: these are the positions at which every checkpoint of the family is read",
    "promoted": _AGAIN,
    "shards": _AGAIN,
    "calibrations": _AGAIN,
}
_RECIPES = ("activations",)
"""Kinds that a retry makes again although rows refer to them."""


def kind_of(name: str) -> str:
    """Kind of an artifact: `activations` of `fam_1/activations-0a1b...`."""
    inner = name.partition("/")[2]
    match = re.match(r"([a-z-]+?)-[0-9a-f]{20}", inner)
    return match[1] if match else inner.partition("/")[0]


def advice(name: str) -> str:
    """How to get a damaged or missing artifact back."""
    return REBUILD.get(kind_of(name), _BACKUP)


def set_aside(session: Session, artifacts: ArtifactStore, error: DamagedArtifactError) -> str:
    """What a run says of a damaged artifact. One that a retry makes again is removed, so that it does."""
    name = error.name
    referred = queries.dependents(session, name)
    again = not referred or kind_of(name) in _RECIPES
    if again:
        artifacts.remove(name, entry=False)
        queries.erase(session, [name])
    what = _AGAIN if not referred else advice(name)
    needs = f" It is needed by {', '.join(referred[:5])}." if referred else ""
    return f"The artifact {name} is damaged: {error.reason}.{needs} {what}."


def verify_all(session: Session, artifacts: ArtifactStore, family_id: str) -> dict[str, Any]:
    """Read every artifact that a family's rows refer to: what is damaged, and how much was verified.

    Artifacts that are older than the ledger are entered into it as they are.
    """
    damaged: list[dict[str, Any]] = []
    verified = size = 0
    adopted: list[str] = []
    for name in sorted(queries.references(session, family_id)):
        if not artifacts.exists(name):
            continue  # reported as missing
        try:
            artifacts.path(name)
        except DamagedArtifactError as error:
            damaged.append({"artifact": name, "reason": error.reason})
            continue
        entry = queries.entry(session, name)
        if entry is None:
            adopted.append(name)
        else:
            verified, size = verified + 1, size + entry.size
    return {"damaged": damaged, "verified": verified, "verified_bytes": size, "adopted": adopted}
