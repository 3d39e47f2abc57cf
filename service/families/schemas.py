"""JSON of families."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from featurewatch.service.families.calibration import CalibrationSummary
from featurewatch.service.kit.hook_points import KINDS, is_hook_point
from featurewatch.service.verdicts.policy import Policy

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def check_hook_points(names: list[str]) -> list[str]:
    """Validate a list of hook points: known kinds, no duplicates. Returns it in the given order."""
    for name in names:
        if not is_hook_point(name):
            raise ValueError(
                f"{name!r} is not a hook point; use {' or '.join(KINDS)} with a layer number, such as resid_post.12 "
                "(layers start at 0)"
            )
    if len(set(names)) != len(names):
        raise ValueError("hook points must be unique")
    return names


HookPoints = Annotated[list[str], Field(min_length=1, max_length=64), AfterValidator(check_hook_points)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_PATTERN)]


class Corpus(BaseModel):
    """The probe corpus: the documents that every checkpoint of the family is run on."""

    model_config = ConfigDict(extra="forbid")

    uri: str = Field(
        "builtin:python-docs",
        max_length=2000,
        description="`builtin:python-docs`, or the `file://` URI of a .txt or .jsonl file or of a folder of them.",
    )
    max_documents: int = Field(2000, ge=2, le=1_000_000, description="Maximum number of documents.")
    context_length: int = Field(128, ge=8, le=131_072, description="Maximum number of tokens per document.")


class CrosscoderOptions(BaseModel):
    """The dictionary and its training."""

    model_config = ConfigDict(extra="forbid")

    n_features: int = Field(
        4096, ge=8, le=1_048_576, description="Number of latents of a full fit. Extensions add more."
    )
    k: int = Field(32, ge=1, le=4096, description="Average number of active latents per position.")
    sparsity: Literal["batch_topk", "topk", "l1", "jumprelu"] = Field(
        "batch_topk",
        description="Sparsity of the code: the largest activations of a batch, the largest of each position, an L1 "
        "penalty weighted by decoder norms, or learned thresholds.",
    )
    sparsity_weight: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Penalty weight of `l1` and `jumprelu`. Default: adjusted so that k latents are active on average.",
    )
    decoder: Literal["per_source", "shared"] = Field(
        "per_source", description="One decoder per source, or a single one for all sources through orthonormal maps."
    )
    source_dropout: float = Field(
        0.0, ge=0, lt=1, description="Probability of hiding a source from the encoder at a position during training."
    )
    prefixes: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list,
        max_length=32,
        description="Matryoshka prefixes, ascending: the first n latents also reconstruct on their own, for each n.",
    )
    designated: int = Field(0, ge=0, description="Number of latents shared by design: equal norms in all sources.")
    designated_discount: float = Field(
        0.2, gt=0, le=1, description="Sparsity penalty of a designated latent relative to the others."
    )
    dedicated: int = Field(
        0, ge=0, description="Number of latents exclusive to each checkpoint in joint fits; other decoders are zero."
    )
    steps: int = Field(2000, ge=1, le=10_000_000, description="Training steps of a full fit.")
    batch_size: int = Field(2048, ge=16, le=1_048_576, description="Positions per step.")
    learning_rate: float = Field(2e-3, gt=0, le=1, allow_inf_nan=False, description="Peak learning rate of Adam.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Random seed of the initialisation and the data order.")

    @model_validator(mode="after")
    def _sparse(self) -> Self:
        if self.k > self.n_features:
            raise ValueError("k must not exceed n_features")
        if self.prefixes != sorted({p for p in self.prefixes if p < self.n_features}):
            raise ValueError("prefixes must be ascending and less than n_features")
        if self.designated + self.dedicated > self.n_features:
            raise ValueError("designated + dedicated must not exceed n_features")
        if self.decoder == "shared" and (self.designated or self.dedicated):
            raise ValueError("designated and dedicated latents require per-source decoders")
        if self.sparsity_weight is not None and self.sparsity not in ("l1", "jumprelu"):
            raise ValueError(f"sparsity_weight applies only to l1 and jumprelu, not to {self.sparsity}")
        return self


class FamilyIn(BaseModel):
    """A family to create."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="Used in every URL of the family.")
    hook_points: HookPoints = Field(description="Where the models' activations are read, e.g. `resid_post.12`.")
    corpus: Corpus = Field(default_factory=Corpus)
    crosscoder: CrosscoderOptions = Field(default_factory=CrosscoderOptions)
    policy: Policy = Field(default_factory=Policy)


class FamilyOut(BaseModel):
    """A family with all defaults filled in."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    hook_points: list[str]
    corpus: Corpus
    crosscoder: CrosscoderOptions
    policy: Policy
    generation: int = Field(description="Number of full fits so far.")
    n_features: int = Field(description="Number of feature ids assigned so far.")
    positions: dict[str, Any] | None = Field(
        description="Digest and count of the positions. Null before the first checkpoint."
    )
    calibration: CalibrationSummary | None = Field(
        None, description="The latest calibration: how often the thresholds raised a false alarm. Null if none."
    )
    created_at: datetime
    updated_at: datetime
