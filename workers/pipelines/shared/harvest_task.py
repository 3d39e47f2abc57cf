"""What a harvest reads, as JSON that any worker understands."""

from dataclasses import dataclass
from typing import Any

from featurewatch.service.config import Settings
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.workers.activations import HarvestSpec, Positions, load_documents
from featurewatch.workers.activations.sources.identity import Reference, Verified


@dataclass(frozen=True)
class HarvestTask:
    """What a harvest reads. Any worker makes the same HarvestSpec from it, apart from its own folders."""

    reference: dict[str, Any]
    """A resolved `Reference`"""
    hook_points: list[str]
    documents: str
    """Artifact: the family's copy of its corpus"""
    context_length: int
    positions: dict[str, Any] | None
    """The family's. None: this checkpoint defines them"""
    skip_tokens: int
    max_norm_ratio: float
    shard_positions: int

    def spec(self, settings: Settings, artifacts: ArtifactStore, device: str, checkpoint: Verified) -> HarvestSpec:
        """The specification for a verified checkpoint, with corpus and positions loaded."""
        positions = Positions.load(artifacts.path(self.positions["artifact"])) if self.positions else None
        return HarvestSpec(
            uri=checkpoint.uri,
            adapter=checkpoint.adapter,
            content=checkpoint.digest,
            model=Reference(**self.reference).title,
            hook_points=self.hook_points,
            corpus=load_documents(artifacts.path(self.documents)),
            context_length=self.context_length,
            positions=positions,
            roots=checkpoint.roots,
            device=device,
            cache_dir=settings.cache_dir,
            skip_tokens=self.skip_tokens,
            max_norm_ratio=self.max_norm_ratio,
            shard_positions=self.shard_positions,
        )
