"""Damaged and missing artifacts: what depends on one, how to get it back, and what a retry makes anew by itself."""

import re
from collections.abc import Iterable
from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.kit.artifacts import ArtifactStore, DamagedArtifactError, MissingArtifactError
from featurewatch.service.store import queries

REMADE = ("documents", "positions", "dictionary", "contrast-activations", "examples")
"""Kinds that a run of the family makes again before it begins, those that others are made of first."""
_READ_AGAIN = "activations"
"""The kind that a run makes again when it needs it."""
_BACKUP = "Restore it from a backup of the artifact store"
_FIT = (
    f"{_BACKUP}. Without one the dictionary is lost: make a new family and register the checkpoints again; "
    "`fit: refit` on the family's next checkpoint needs the old dictionary too"
)
_ELSE = "if it is what it was; else restore it from a backup"
_AGAIN = "Retry the run: it is made again"
# Kind of an artifact -> how to get it back.
REBUILD = {
    "activations": "Retry the run: the checkpoint is read again, if its files are where they were",
    "code": _FIT,
    "contrast": f"{_BACKUP}, or delete the signature and create it again from its rows",
    "contrast-activations": f"Retry the run: the rows are read again, {_ELSE}",
    "dependencies": "Start `featurewatch dependencies` for the feature again",
    "dictionary": (
        "Retry the run: it is solved again, if the activations of the checkpoint and of its parent are kept or can be "
        "read again; else restore it from a backup"
    ),
    "documents": f"Retry the run: the corpus is copied again, {_ELSE}",
    "examples": "Any run of the family makes it again where it is missing; the verdicts do not depend on it",
    "lineage": _AGAIN,
    "measures": _AGAIN,
    "positions": (
        "Retry the run: they are copied again, if the activations of the family's first checkpoint are kept; else "
        "restore it from a backup"
    ),
    "promoted": _AGAIN,
    "shards": _AGAIN,
    "calibrations": _AGAIN,
}


def kind_of(name: str) -> str:
    """Kind of an artifact: `activations` of `fam_1/activations-0a1b...`."""
    inner = name.partition("/")[2]
    match = re.match(r"([a-z-]+?)-[0-9a-f]{20}", inner)
    return match[1] if match else inner.partition("/")[0]


def is_remade(name: str) -> bool:
    """Whether a retry tries to make an artifact again although rows refer to it."""
    return kind_of(name) in (_READ_AGAIN, *REMADE)


def advice(name: str) -> str:
    """How to get a damaged or missing artifact back."""
    return REBUILD.get(kind_of(name), _BACKUP)


def lost(session: Session, artifacts: ArtifactStore, family_id: str) -> list[str]:
    """Artifacts of a family that are not in the store, of the kinds REMADE, in the order to make them again."""
    names = [name for name in queries.references(session, family_id) if kind_of(name) in REMADE]
    there = artifacts.listing(family_id)
    found = [name for name in names if name not in there]
    return sorted(found, key=lambda name: REMADE.index(kind_of(name)))


def set_aside(session: Session, artifacts: ArtifactStore, error: DamagedArtifactError) -> str:
    """What a run says of a damaged artifact. One that a retry makes again is removed, so that it does.

    If rows refer to it, it is put aside instead, and stays in the ledger: the retry may find that it cannot make it.
    session: reads. It is not the transaction that the ledger is changed in: moving files may take long.
    """
    assert artifacts.ledger is not None
    name = error.name
    referred = queries.dependents(session, name)
    what = _AGAIN if not referred else advice(name)
    if not referred:
        artifacts.remove(name, entry=False)
        artifacts.ledger.erase(name)  # last: what is damaged must not be taken for what has no entry yet
    elif is_remade(name):
        artifacts.put_aside(name)
        what += ". The damaged files are kept until then"
    needs = f" It is needed by {', '.join(referred[:5])}." if referred else ""
    return f"The artifact {name} is damaged: {error.reason}.{needs} {what}."


def verify_all(artifacts: ArtifactStore, names: Iterable[str]) -> dict[str, Any]:
    """Read artifacts that rows refer to, each in full: what is damaged, and how much was verified.

    Artifacts without an entry in the ledger are entered into it as they are. Copies of a remote store are removed as
    soon as they are read. Those that are not there are left out.
    """
    assert artifacts.ledger is not None
    found: dict[str, Any] = {"damaged": [], "verified": 0, "verified_bytes": 0, "adopted": 0}
    for name in sorted(names):
        known = artifacts.ledger.find(name)
        try:
            artifacts.path(name)
            if known is None:
                artifacts.adopt(name)
        except MissingArtifactError:
            continue
        except DamagedArtifactError as error:
            found["damaged"].append({"artifact": name, "reason": error.reason})
            continue
        finally:
            artifacts.forget(name)
        found["adopted" if known is None else "verified"] += 1
        entry = known or artifacts.ledger.find(name)
        found["verified_bytes"] += entry.size if entry else 0
    return found
