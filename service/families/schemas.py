"""JSON of families."""

from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from featurewatch.service.calibrations.schemas import CalibrationSummary
from featurewatch.service.kit.hook_points import KINDS, is_hook_point
from featurewatch.service.verdicts.policy import Policy

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def check_hook_points(names: list[str]) -> list[str]:
    """Validate a list of hook points: known kinds, none twice. Returns it in the given order."""
    for name in names:
        if not is_hook_point(name):
            raise ValueError(
                f"{name!r} is not a hook point. A hook point is {' or '.join(KINDS)} with a layer from 0: resid_post.12"
            )
    if len(set(names)) != len(names):
        raise ValueError("a hook point is named twice")
    return names


HookPoints = Annotated[list[str], Field(min_length=1, max_length=64), AfterValidator(check_hook_points)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=NAME_PATTERN)]


class Corpus(BaseModel):
    """The probe corpus: the documents that every checkpoint of the family is read on."""

    model_config = ConfigDict(extra="forbid")

    uri: str = Field(
        "builtin:python-docs",
        max_length=2000,
        description="`builtin:python-docs`, or `file://` URI of a .txt or .jsonl file or of a folder of them.",
    )
    max_documents: int = Field(2000, ge=2, le=1_000_000, description="Documents that are read at most.")
    context_length: int = Field(128, ge=8, le=131_072, description="Tokens of a document that are read at most.")


class CrosscoderOptions(BaseModel):
    """The dictionary and its training."""

    model_config = ConfigDict(extra="forbid")

    n_features: int = Field(4096, ge=8, le=1_048_576, description="Latents of a full fit; extensions append more.")
    k: int = Field(32, ge=1, le=4096, description="Latents that fire at a position, on average.")
    sparsity: Literal["batch_topk", "topk", "l1", "jumprelu"] = Field(
        "batch_topk",
        description="How the code is made sparse: the largest of a batch, the largest of each position, a penalty on "
        "norms, or thresholds that are learnt.",
    )
    sparsity_weight: float | None = Field(
        None, gt=0, allow_inf_nan=False,
        description="Weight of the penalty of `l1` and `jumprelu`. null: adjusted so that k latents fire on average.",
    )  # fmt: skip
    decoder: Literal["per_source", "shared"] = Field(
        "per_source", description="A decoder for each source, or one for all through orthonormal maps."
    )
    source_dropout: float = Field(
        0.0, ge=0, lt=1, description="Chance that a source is hidden from the encoder at a position of the fit."
    )
    prefixes: list[Annotated[int, Field(ge=1)]] = Field(
        default_factory=list, max_length=32,
        description="Matryoshka: the first so many latents reconstruct by themselves too. Ascending.",
    )  # fmt: skip
    designated: int = Field(0, ge=0, description="Latents that are shared by design: one norm in all sources.")
    designated_discount: float = Field(
        0.2, gt=0, le=1, description="What a designated latent pays for being active, over what the others pay."
    )
    dedicated: int = Field(
        0, ge=0, description="Latents of each checkpoint's own, in fits over several; the others' decoders are zero."
    )
    steps: int = Field(2000, ge=1, le=10_000_000, description="Training steps of a full fit.")
    batch_size: int = Field(2048, ge=16, le=1_048_576, description="Positions of one step.")
    learning_rate: float = Field(2e-3, gt=0, le=1, allow_inf_nan=False, description="Peak learning rate of Adam.")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Of initialisation and of the order of the data.")

    @model_validator(mode="after")
    def _sparse(self) -> Self:
        if self.k > self.n_features:
            raise ValueError("k is larger than n_features: more latents would have to fire than there are")
        if self.prefixes != sorted({p for p in self.prefixes if p < self.n_features}):
            raise ValueError("prefixes must ascend and stay under n_features")
        if self.designated + self.dedicated > self.n_features:
            raise ValueError("more designated and dedicated latents than n_features")
        if self.decoder == "shared" and (self.designated or self.dedicated):
            raise ValueError("a shared decoder writes every latent in all sources: no designated or dedicated ones")
        if self.sparsity_weight is not None and self.sparsity not in ("l1", "jumprelu"):
            raise ValueError(f"sparsity_weight is for l1 and jumprelu; {self.sparsity} has no penalty")
        return self


class FamilyIn(BaseModel):
    """A family to be made."""

    model_config = ConfigDict(extra="forbid")

    name: Name = Field(description="Part of every URL of the family.")
    hook_points: HookPoints = Field(description="Where the models are read, e.g. `resid_post.12`.")
    corpus: Corpus = Field(default_factory=Corpus)
    crosscoder: CrosscoderOptions = Field(default_factory=CrosscoderOptions)
    policy: Policy = Field(default_factory=Policy)


class FamilyOut(BaseModel):
    """A family, defaults filled in."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    name: str
    hook_points: list[str]
    corpus: Corpus
    crosscoder: CrosscoderOptions
    policy: Policy
    generation: int = Field(description="Full fits so far.")
    n_features: int = Field(description="Feature ids handed out so far.")
    positions: dict[str, Any] | None = Field(description="Digest and count; null before the first checkpoint.")
    calibration: CalibrationSummary | None = Field(
        None, description="The last calibration: how often its thresholds gave a false alarm. Null: there was none."
    )
    created_at: datetime
    updated_at: datetime
