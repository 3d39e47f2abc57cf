"""A family's policy: the thresholds that turn measurements into verdicts, and when to fit again."""

from pydantic import BaseModel, ConfigDict, Field


class Policy(BaseModel):
    """Thresholds of the verdicts, and when to fit again. They are set before looking; none is tuned to data."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    suppressed_below: float = Field(0.5, gt=0, lt=1, description="Projection ratio significantly under it: suppressed.")
    amplified_above: float = Field(2.0, gt=1, description="Projection ratio significantly over it: amplified.")
    absent_below: float = Field(0.1, gt=0, lt=1, description="Upper end of the interval under it: absent.")
    fdr: float = Field(0.05, gt=0, lt=1, description="False discovery rate (Benjamini-Hochberg) of one comparison.")
    sequential: bool = Field(
        True,
        description="Spend `fdr` over the checkpoints of a lineage, so that false alarms do not pile up with every "
        "version. False: every comparison may use all of it.",
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the reported intervals.")
    code_error: float = Field(
        0.02,
        ge=0,
        lt=1,
        description="Standard error that a ratio has from the code's own errors, as a share of the change that it "
        "tells of. Intervals hold it beside what documents vary by.",
    )
    min_firings: int = Field(30, ge=1, description="Fewer firings on the probe corpus: indeterminate.")
    min_documents: int = Field(5, ge=2, description="Firings in fewer documents: indeterminate.")
    min_readability: float = Field(
        0.2, ge=0, le=1, description="A feature whose code cannot be read from the source this well is not `present`."
    )
    successor_cofiring: float = Field(
        0.4, gt=0, le=1, description="Share of a weakened feature's activation that successors must carry: replaced."
    )
    successor_strength: float = Field(
        0.5, gt=0, description="What successors must write there together, over what the weakened feature wrote."
    )
    new_features: int = Field(64, ge=0, description="Most new features that one extension may append.")
    max_norm_ratio: float = Field(
        4.0, gt=1, description="Positions whose norm is over this many medians (attention sinks) are masked out."
    )
    skip_tokens: int = Field(1, ge=0, description="Tokens at the start of a document that are masked out.")
    max_fvu_ratio: float = Field(
        2.0,
        gt=1,
        description="`fit: auto` re-fits when the parent's FVU is over so many times that of the fit.",
    )
    refit_every: int = Field(0, ge=0, description="`fit: auto` re-fits after so many extensions. 0: never by count.")
    anchors: int = Field(2, ge=1, le=16, description="Earlier checkpoints that a re-fit trains on beside the newest.")
    warm_start: bool = Field(
        True,
        description="A re-fit starts from the last generation's features, so that most of them keep their ids. False: "
        "from random directions, so that nothing is taken over from the last fit.",
    )
    match_threshold: float = Field(
        0.6, gt=0, le=1, description="Correlation of codes that carries an id over a re-fit."
    )
    dependencies: bool = Field(
        True,
        description="After a checkpoint is judged, find out what its watched features and the strongest ones of each "
        "signature are computed from, where its weights are at hand.",
    )
