"""The report on an installation's storage."""

from typing import Any

from sqlalchemy.orm import Session

from featurewatch.service.deletions import families as deletions
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.store import queries


def inspect(session: Session, artifacts: ArtifactStore) -> dict[str, Any]:
    """Totals and faults of an installation: artifacts that are missing or have the wrong size, orphaned rows."""
    missing: list[dict[str, str]] = []
    damaged: list[dict[str, str]] = []
    aside: list[dict[str, Any]] = []
    loose, total = dict[str, int](), 0
    for family_id in queries.families(session):
        stored = artifacts.listing(family_id)
        needed = queries.references(session, family_id)
        missing += [{"artifact": name, "column": needed[name]} for name in sorted(needed.keys() - stored.keys())]
        written = queries.entries(session, family_id)
        damaged += [
            {"artifact": name, "reason": f"it has {stored[name]:,} bytes instead of {written[name]:,}"}
            for name in sorted(needed.keys() & stored.keys() & written.keys())
            if stored[name] != written[name]
        ]
        known = needed.keys() | queries.shared_folders(session, family_id)
        loose |= {name: size for name, size in stored.items() if name not in known}
        total += sum(stored.values())
        aside += [{"artifact": name, "bytes": size} for name, size in artifacts.put_asides(family_id).items()]
    return {
        "engine": queries.engine(session),
        "bytes": queries.size(session),
        "rows": queries.row_counts(session),
        "artifact_bytes": total,
        "missing": missing,
        "damaged": damaged,
        "put_aside": aside,
        "unreferenced": len(loose),
        "unreferenced_bytes": sum(loose.values()),
        "orphans": queries.orphans(session),
        "deletions": deletions.inspect(session, artifacts),
    }
