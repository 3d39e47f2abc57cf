"""Features as JSON for Neuronpedia-style viewers, with the fields of Neuronpedia's own feature API.

`modelId` is the checkpoint, `layer` the source (`12-resid_post-assistant`), `index` the number in the feature's id.
Histograms and correlated neurons are left out.
"""

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from featurewatch.service.checkpoints import logic as checkpoints
from featurewatch.service.features import codes
from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.hook_points import depth
from featurewatch.service.kit.ids import feature_id
from featurewatch.service.kit.problems import NotFoundError
from featurewatch.service.labels import queries
from featurewatch.service.labels.passages import Activation, Passages
from featurewatch.service.models import Checkpoint, Family, Feature
from featurewatch.service.verdicts import queries as verdicts


class Explanation(BaseModel):
    """A label by a person, by a model, or an automatic one."""

    description: str
    type_name: str = Field(serialization_alias="typeName")
    explanation_model_name: str | None = Field(serialization_alias="explanationModelName")
    scores: list[dict[str, Any]]


class NeuronpediaFeature(BaseModel):
    """A feature in the format of Neuronpedia-style viewers."""

    model_id: str = Field(serialization_alias="modelId", description="The checkpoint.")
    layer: str = Field(
        description="The source: layer, kind of hook point, family.", examples=["12-resid_post-assistant"]
    )
    source_set_name: str = Field(serialization_alias="sourceSetName")
    index: str = Field(description="The number in the feature's id.", examples=["42"])
    pos_str: list[str] = Field(description="Tokens whose logits it raises most.")
    pos_values: list[float] = Field(
        description="Increase of their logits: logit lens at unit norm, minus the mean over the vocabulary."
    )
    neg_str: list[str]
    neg_values: list[float]
    frac_nonzero: float = Field(description="Fraction of the positions at which it fires.")
    max_act_approx: float = Field(serialization_alias="maxActApprox")
    activations: list[Activation] = Field(description="Strongest first. Empty if the family has no text.")
    explanations: list[Explanation] = Field(
        description="The person's label first, then the model's, then the automatic one."
    )


class Exporter:
    """Exports features of one checkpoint's code, opening its files only once. Raises 404 if there is no code."""

    def __init__(self, session: Session, artifacts: ArtifactStore, family: Family, checkpoint: str | None) -> None:
        self.session, self.artifacts, self.family = session, artifacts, family
        self.checkpoint: Checkpoint = checkpoints.get_judged(session, family, checkpoint)
        self.code, _ = codes.code_of(session, family, self.checkpoint.name)
        numbers = codes.tensors(artifacts, self.code.artifact)["feature_numbers"]
        self.columns = {number: column for column, number in enumerate(numbers.tolist())}
        self.texts = Passages(artifacts, family, self.code)
        sources = verdicts.sources(session, self.checkpoint.id)
        # Promoted tokens are computed at the deepest one.
        self.hook_point = max((hook for hook in self.checkpoint.hook_points if hook in sources), key=depth)

    def features(self, numbers: Sequence[int], limit: int) -> list[NeuronpediaFeature]:
        """The features with these numbers, in order, with up to `limit` passages each. Raises 404 for unknown ones."""
        for number in numbers:
            if number not in self.columns:
                raise NotFoundError(
                    f"The code of {self.checkpoint.name} has no feature {feature_id(number)}.", code="no-code"
                )
        features = queries.with_logits(self.session, self.family.id, numbers)
        rows = verdicts.standing(self.session, self.checkpoint.id, ["firing_rate"])
        rates = {number: rate for number, _, rate in rows}
        return [self._feature(features[number], rates.get(number, 0.0), limit) for number in numbers]

    def _feature(self, feature: Feature, rate: float, limit: int) -> NeuronpediaFeature:
        kind, _, layer = self.hook_point.partition(".")
        source_set, column = f"{kind}-{self.family.name}", self.columns[feature.number]
        promoted, demoted = (feature.logits.get(name, []) for name in ("promoted", "demoted"))
        return NeuronpediaFeature(
            model_id=self.checkpoint.name,
            layer=f"{layer}-{source_set}",
            source_set_name=source_set,
            index=str(feature.number),
            pos_str=[token for token, _ in promoted],
            pos_values=[value for _, value in promoted],
            neg_str=[token for token, _ in demoted],
            neg_values=[value for _, value in demoted],
            frac_nonzero=rate,
            max_act_approx=self.texts.largest(column),
            activations=self.texts.activations(column, limit),
            explanations=_explanations(feature),
        )


def _explanations(feature: Feature) -> list[Explanation]:
    score = feature.model_label_score
    scores = [] if score is None else [{"typeName": "detection", "value": score}]
    kinds = [
        (feature.label, "human", None, []),
        (feature.model_label, "featurewatch-passages", feature.model_label_by, scores),
        (feature.auto_label, "featurewatch-tokens", None, []),
    ]
    return [
        Explanation(description=text, type_name=kind, explanation_model_name=model, scores=scored)
        for text, kind, model, scored in kinds
        if text
    ]
