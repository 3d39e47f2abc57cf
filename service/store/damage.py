"""Damaged and missing artifacts: what depends on them, how to restore them, and which ones a retry rebuilds."""

import re
from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.kit.artifacts import ArtifactStore, DamagedArtifactError, MissingArtifactError
from featurewatch.service.store import queries

REMADE = ("documents", "positions", "dictionary", "rows", "own-code", "contrast-activations", "examples")
"""Kinds that a run of the family rebuilds before it starts, prerequisites first."""
_READ_AGAIN = "activations"
"""The kind that a run rebuilds when it needs it."""
_BACKUP = "Restore it from a backup of the artifact store"
_FIT = (
    f"{_BACKUP}. Without a backup the dictionary is lost: create a new family and register the checkpoints again. "
    "`fit: refit` on the next checkpoint does not help, because it needs the old dictionary"
)
_UNCHANGED = "is unchanged; otherwise restore it from a backup"
_AGAIN = "Retry the run to rebuild it"
# Kind of artifact -> how to restore it.
REBUILD = {
    "activations": "Retry the run to read the checkpoint again; its files must still be in place",
    "code": _FIT,
    "contrast": f"{_BACKUP}, or delete the signature and create it again from its rows",
    "contrast-activations": f"Retry the run to read the rows again, if the checkpoint {_UNCHANGED}",
    "dependencies": "Run `featurewatch dependencies` for the feature again",
    "dictionary": (
        "Retry the run to solve it again, if the activations of the checkpoint and its parent are kept or can be read "
        "again; otherwise restore it from a backup"
    ),
    "documents": f"Retry the run to copy the corpus again, if it {_UNCHANGED}",
    "examples": "Any run of the family rebuilds it if it is missing; no verdict depends on it",
    "lineage": _AGAIN,
    "measures": _AGAIN,
    "own-code": (
        "Retry the run to read it again, if the activations of the checkpoint are kept or can be read again; otherwise "
        "restore it from a backup"
    ),
    "positions": (
        "Retry the run to copy it again, if the activations of the family's first checkpoint are kept; otherwise "
        "restore it from a backup"
    ),
    "promoted": _AGAIN,
    "rows": (
        "Retry the run to solve them again, if the activations of the checkpoint and its parent are kept or can be "
        "read again; otherwise restore them from a backup"
    ),
    "shards": _AGAIN,
    "calibrations": _AGAIN,
}


def kind_of(name: str) -> str:
    """The kind of an artifact: `activations` for `fam_1/activations-0a1b...`."""
    inner = name.partition("/")[2]
    match = re.match(r"([a-z-]+?)-[0-9a-f]{20}", inner)
    return match[1] if match else inner.partition("/")[0]


def is_remade(name: str) -> bool:
    """Whether a retry tries to rebuild an artifact that rows refer to."""
    return kind_of(name) in (_READ_AGAIN, *REMADE)


def advice(name: str) -> str:
    """How to restore a damaged or missing artifact."""
    return REBUILD.get(kind_of(name), _BACKUP)


def lost(session: Session, artifacts: ArtifactStore, family_id: str) -> list[str]:
    """A family's missing artifacts of the kinds REMADE, in the order in which to rebuild them."""
    names = [name for name in queries.references(session, family_id) if kind_of(name) in REMADE]
    stored = artifacts.listing(family_id)
    missing = [name for name in names if name not in stored]
    return sorted(missing, key=lambda name: REMADE.index(kind_of(name)))


def set_aside(session: Session, artifacts: ArtifactStore, error: DamagedArtifactError) -> str:
    """Remove a damaged artifact that a retry rebuilds, and return the error message for the run.

    If rows refer to it, it is set aside and stays in the ledger, because the retry may be unable to rebuild it.
    `session` is used for reading only; the ledger changes in a separate transaction, because moving files is slow.
    """
    assert artifacts.ledger is not None
    name = error.name
    dependents = queries.dependents(session, name)
    remedy = _AGAIN if not dependents else advice(name)
    if not dependents:
        artifacts.remove(name, entry=False)
        artifacts.ledger.erase(name)  # last, or the damaged artifact could be adopted as one without an entry
    elif is_remade(name):
        artifacts.put_aside(name)
        remedy += ". The damaged files are kept until then"
    needs = f" It is needed by {', '.join(dependents[:5])}." if dependents else ""
    return f"The artifact {name} is damaged: {error.reason}.{needs} {remedy}."


def verify_all(artifacts: ArtifactStore, names: Iterable[str]) -> dict[str, Any]:
    """Read artifacts in full and verify their digests. Returns the damaged ones and totals.

    Artifacts without a ledger entry get one for their current content. Local copies from a remote store are removed
    after reading. Missing artifacts are skipped.
    """
    assert artifacts.ledger is not None
    result: dict[str, Any] = {"damaged": [], "verified": 0, "verified_bytes": 0, "adopted": 0}
    for name in sorted(names):
        known = artifacts.ledger.find(name)
        try:
            artifacts.path(name)
            if known is None:
                artifacts.adopt(name)
        except MissingArtifactError:
            continue
        except DamagedArtifactError as error:
            result["damaged"].append({"artifact": name, "reason": error.reason})
            continue
        finally:
            artifacts.forget(name)
        result["adopted" if known is None else "verified"] += 1
        entry = known or artifacts.ledger.find(name)
        result["verified_bytes"] += entry.size if entry else 0
    return result
