"""A family's policy: the thresholds that turn measurements into verdicts, and when to fit again."""

from pydantic import BaseModel, ConfigDict, Field


class Policy(BaseModel):
    """Thresholds of verdicts, and when to fit again. The defaults were chosen in advance, not tuned to data."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    suppressed_below: float = Field(
        0.5, gt=0, lt=1, description="Suppressed: projection ratio significantly below this."
    )
    amplified_above: float = Field(2.0, gt=1, description="Amplified: projection ratio significantly above this.")
    absent_below: float = Field(0.1, gt=0, lt=1, description="Absent: upper end of the interval below this.")
    fdr: float = Field(0.05, gt=0, lt=1, description="False discovery rate (Benjamini-Hochberg) of one comparison.")
    sequential: bool = Field(
        True,
        description="Spend `fdr` over the checkpoints of a lineage, so that false alarms do not accumulate with every "
        "version. False: every comparison may use all of it.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the reported intervals.")
    code_error: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Standard error of a ratio from errors of the code, as a share of the change. Intervals include it "
        "in addition to the variation over documents.",
    )
    min_firings: int = Field(30, ge=1, description="Indeterminate: fewer firings on the probe corpus.")
    min_documents: int = Field(5, ge=2, description="Indeterminate: firings in fewer documents.")
    min_readability: float = Field(0.2, ge=0, le=1, description="Present: minimum readability from the source.")
    successor_cofiring: float = Field(
        0.4, gt=0, le=1, description="Replaced: share of a weakened feature's activation that successors must carry."
    )
    successor_strength: float = Field(
        0.5, gt=0, description="Replaced: what successors must write there, divided by what the feature wrote."
    )
    new_features: int = Field(64, ge=0, description="Maximum number of new features that an extension adds.")
    max_norm_ratio: float = Field(
        4.0, gt=1, description="Positions with a norm above this many medians (attention sinks) are masked."
    )
    skip_tokens: int = Field(1, ge=0, description="Tokens at the start of each document that are masked.")
    max_fvu_ratio: float = Field(
        2.0,
        gt=1,
        description="`fit: auto` re-fits when the parent's FVU exceeds this multiple of the FVU at the fit.",
    )
    refit_every: int = Field(0, ge=0, description="`fit: auto` re-fits after this many extensions. 0: no limit.")
    anchors: int = Field(
        2, ge=1, le=16, description="Earlier checkpoints that a re-fit trains on in addition to the newest."
    )
    warm_start: bool = Field(
        True,
        description="A re-fit starts from the last generation's features, so that most keep their ids. False: it "
        "starts from random directions, independent of the last fit.",
    )
    match_threshold: float = Field(
        0.6, gt=0, le=1, description="Minimum correlation of codes for a feature to keep its id at a re-fit."
    )
    dependencies: bool = Field(
        True,
        description="After a checkpoint is judged, find the dependencies of its watched features and of the strongest "
        "features of each signature, if its weights are available.",
    )
