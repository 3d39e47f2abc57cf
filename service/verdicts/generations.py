"""Generations of a family's dictionary: which checkpoints a re-fit trains on, and when one is due.

A checkpoint is *fitted* where a generation's dictionary was trained on it: the first one of a lineage, and those whose
runs re-fitted. The anchors of the next re-fit are the first of them, where the lineage's features come from, and the
latest others.
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
    """A checkpoint that another one comes from, with what is kept of it."""

    checkpoint: Checkpoint
    code: Code | None
    sources: dict[str, Source]
    """by hook point"""
    fitted: bool

    def hooks(self, hook_points: Sequence[str]) -> list[str] | None:
        """Its own hook points for those of another checkpoint.

        Of as many: the same names where it has them all, else by place. Of another number: all of its own, which a
        worker pairs when it has read the checkpoint; None where no two are of one kind.
        """
        own = self.checkpoint.hook_points
        if len(own) == len(hook_points):
            return list(hook_points) if set(hook_points) == set(own) else list(own)
        return list(own) if kinds(own) & kinds(hook_points) else None

    def readable(self, hook_points: Sequence[str]) -> bool:
        """Whether its activations at all these hook points, by name or by place, are kept."""
        own = self.hooks(hook_points)
        return own is not None and all(h in self.sources and self.sources[h].activations is not None for h in own)

    @property
    def fvu(self) -> float | None:
        """Of the dictionary on it."""
        return (self.checkpoint.quality or {}).get("fvu")


def kinds(hook_points: Sequence[str]) -> set[str]:
    """Kinds of hook points: `resid_post` of `resid_post.12`."""
    return set(map(kind_of, hook_points))


def ancestry(session: Session, checkpoint: Checkpoint) -> list[Ancestor]:
    """The checkpoints that this one comes from, its parent first."""
    ids = queries.ancestors(session, checkpoint)
    rows = [(queries.checkpoint(session, one), queries.code(session, one)) for one in ids]
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
    """A checkpoint as what a child of it would come from."""
    code = queries.code(session, checkpoint.id)
    return Ancestor(checkpoint, code, queries.sources(session, checkpoint.id), bool(code and code.extra.get("fitted")))


def anchors(ancestors: Sequence[Ancestor], hook_points: Sequence[str], most: int) -> list[Ancestor]:
    """What a re-fit trains on beside the newest checkpoint, oldest first: at most `most`, activations of all kept.

    Where nothing is kept of those that were fitted on, it is the parent.
    """
    fitted = [one for one in reversed(ancestors) if one.fitted and one.readable(hook_points)]
    latest = fitted[1:][-(most - 1) :] if most > 1 else []
    return fitted[:1] + latest if fitted else list(ancestors[:1])


def fitted_fvu(ancestors: Sequence[Ancestor]) -> float | None:
    """FVU of the parent's generation on the checkpoint that it was fitted on last."""
    return next((one.fvu for one in _generation(ancestors) if one.fitted), None)


def reference_fvu(session: Session, checkpoint: Checkpoint) -> float | None:
    """FVU where the dictionary that judged a checkpoint was fitted last; None where that is the checkpoint itself.

    As `fitted_fvu` of its ancestors, in two queries however long the lineage is.
    """
    code = queries.code(session, checkpoint.id)
    if code is None or code.extra.get("fitted"):
        return None
    earlier = queries.fits(session, queries.ancestors(session, checkpoint))
    ours = list(takewhile(lambda fit: fit[0] == code.generation, earlier))
    return next((quality.get("fvu") for _, fitted, quality in ours if fitted), ours[-1][2].get("fvu") if ours else None)


def why_refit(ancestors: Sequence[Ancestor], policy: Policy) -> str | None:
    """Why `fit: auto` is to re-fit now, from how well the dictionary does on the parent; None: it is to extend."""
    ours = _generation(ancestors)
    extensions = sum(not one.fitted for one in ours)
    if policy.refit_every and extensions >= policy.refit_every:
        return f"{extensions} extension{'s' * (extensions > 1)}"
    fvu, first = ours[0].fvu if ours else None, fitted_fvu(ancestors)
    if fvu is not None and first and fvu > policy.max_fvu_ratio * first:
        return f"fvu {fvu:.3g} over {policy.max_fvu_ratio:g} x {first:.3g}"
    return None


def _generation(ancestors: Sequence[Ancestor]) -> list[Ancestor]:
    """Those that were judged with the parent's generation, the parent first."""
    current = ancestors[0].code.generation if ancestors and ancestors[0].code else None
    return list(takewhile(lambda one: one.code is not None and one.code.generation == current, ancestors))
