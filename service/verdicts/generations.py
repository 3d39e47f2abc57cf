"""Generations of a family's dictionary: which checkpoints a re-fit trains on, and when a re-fit is due.

A checkpoint is *fitted* if a generation's dictionary was trained on it: the first of a lineage, and those whose runs
re-fitted. The anchors of the next re-fit are the first fitted checkpoint, where the lineage's features come from, and
the latest others.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from sqlalchemy.orm import Session

from featurewatch.service.kit.hook_points import kind_of
from featurewatch.service.models import Checkpoint, Code, Source
from featurewatch.service.verdicts import queries
from featurewatch.service.verdicts.policy import Policy


@dataclass(frozen=True)
class Ancestor:
    """An ancestor of a checkpoint, with its stored code and sources."""

    checkpoint: Checkpoint
    code: Code | None
    sources: dict[str, Source]
    """by hook point"""
    fitted: bool

    def hooks(self, hook_points: Sequence[str]) -> list[str] | None:
        """Its hook points that correspond to those of another checkpoint.

        For the same number: the same names if it has them all, otherwise in order. For another number: all of its own,
        which a worker pairs after reading the checkpoint. None if the two have no kind of hook point in common.
        """
        own = self.checkpoint.hook_points
        if len(own) == len(hook_points):
            return list(hook_points) if set(hook_points) == set(own) else list(own)
        return list(own) if kinds(own) & kinds(hook_points) else None

    def readable(self, hook_points: Sequence[str]) -> bool:
        """Whether its activations at the corresponding hook points are stored."""
        own = self.hooks(hook_points)
        return own is not None and all(h in self.sources and self.sources[h].activations is not None for h in own)

    @property
    def fvu(self) -> float | None:
        """FVU of the dictionary on the checkpoint."""
        return (self.checkpoint.quality or {}).get("fvu")


def kinds(hook_points: Sequence[str]) -> set[str]:
    """Kinds of hook points: `resid_post` of `resid_post.12`."""
    return set(map(kind_of, hook_points))


def ancestry(session: Session, checkpoint: Checkpoint) -> list[Ancestor]:
    """The ancestors of a checkpoint, its parent first."""
    ids = queries.ancestors(session, checkpoint)
    rows = [(queries.checkpoint(session, id_), queries.code(session, id_)) for id_ in ids]
    generations = [code.generation if code else None for _, code in rows]
    return [
        Ancestor(
            checkpoint=row,
            code=code,
            sources=queries.sources(session, row.id),
            fitted=code is not None and (code.generation != before or bool(code.extra.get("fitted"))),
        )
        for (row, code), before in zip(rows, [*generations[1:], None], strict=False)
    ]


def itself(session: Session, checkpoint: Checkpoint) -> Ancestor:
    """A checkpoint as the ancestor of a future child."""
    code = queries.code(session, checkpoint.id)
    return Ancestor(checkpoint, code, queries.sources(session, checkpoint.id), bool(code and code.extra.get("fitted")))


def anchors(ancestors: Sequence[Ancestor], hook_points: Sequence[str], most: int) -> list[Ancestor]:
    """Checkpoints that a re-fit trains on in addition to the newest, oldest first: at most `most`, with activations.

    If no fitted checkpoint has its activations any more, this is the parent.
    """
    fitted = [ancestor for ancestor in reversed(ancestors) if ancestor.fitted and ancestor.readable(hook_points)]
    latest = fitted[1:][-(most - 1) :] if most > 1 else []
    return fitted[:1] + latest if fitted else list(ancestors[:1])


def fitted_fvu(ancestors: Sequence[Ancestor]) -> float | None:
    """FVU of the parent's generation on the checkpoint on which it was last fitted."""
    return next((ancestor.fvu for ancestor in _generation(ancestors) if ancestor.fitted), None)


def reference_fvu(session: Session, checkpoint: Checkpoint) -> float | None:
    """FVU on the checkpoint on which this one's dictionary was last fitted; None if that is this checkpoint.

    The same as `fitted_fvu` of its ancestors, in two queries regardless of the length of the lineage.
    """
    code = queries.code(session, checkpoint.id)
    if code is None or code.extra.get("fitted"):
        return None
    earlier = queries.fits(session, queries.ancestors(session, checkpoint))
    ours = list(takewhile(lambda fit: fit[0] == code.generation, earlier))
    return next((quality.get("fvu") for _, fitted, quality in ours if fitted), ours[-1][2].get("fvu") if ours else None)


def why_refit(ancestors: Sequence[Ancestor], policy: Policy) -> str | None:
    """Why `fit: auto` re-fits now, given the dictionary's quality on the parent. None: it extends."""
    ours = _generation(ancestors)
    extensions = sum(not ancestor.fitted for ancestor in ours)
    if policy.refit_every and extensions >= policy.refit_every:
        return f"{extensions} extension{'s' * (extensions > 1)}"
    fvu, first = ours[0].fvu if ours else None, fitted_fvu(ancestors)
    if fvu is not None and first and fvu > policy.max_fvu_ratio * first:
        return f"fvu {fvu:.3g} over {policy.max_fvu_ratio:g} x {first:.3g}"
    return None


def _generation(ancestors: Sequence[Ancestor]) -> list[Ancestor]:
    """The ancestors that were judged with the parent's generation, the parent first."""
    current = ancestors[0].code.generation if ancestors and ancestors[0].code else None
    return list(
        takewhile(lambda ancestor: ancestor.code is not None and ancestor.code.generation == current, ancestors)
    )
