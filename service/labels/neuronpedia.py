"""A feature as the JSON that Neuronpedia-style viewers read: the fields of Neuronpedia's own feature API.

`modelId` is the checkpoint, `layer` the source (`12-resid_post-assistant`), `index` the number of the feature's id.
Only what is known is filled in; there are no histograms and no correlated neurons.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field
from safetensors import safe_open
from sqlalchemy.orm import Session

from service.checkpoints import logic as checkpoints
from service.features import codes
from service.kit.artifacts import ArtifactStore
from service.kit.ids import feature_id
from service.kit.problems import NotFoundError
from service.labels import queries
from service.models import Checkpoint, Code, Family, Feature
from service.verdicts import queries as verdicts

AROUND = 32
"""Tokens on each side of the one on which the feature fires most."""


class Activation(BaseModel):
    """A passage, token by token, with the feature's activation on each."""

    tokens: list[str]
    values: list[float]
    max_value: float = Field(serialization_alias="maxValue")
    max_value_token_index: int = Field(serialization_alias="maxValueTokenIndex")
    min_value: float = Field(serialization_alias="minValue")


class Explanation(BaseModel):
    """A label, and whose it is: a person's, a model's, or the automatic one."""

    description: str
    type_name: str = Field(serialization_alias="typeName")
    explanation_model_name: str | None = Field(serialization_alias="explanationModelName")
    scores: list[dict[str, Any]]


class NeuronpediaFeature(BaseModel):
    """A feature as Neuronpedia-style viewers read it."""

    model_id: str = Field(serialization_alias="modelId", description="The checkpoint.")
    layer: str = Field(
        description="The source: layer, kind of hook point, family.", examples=["12-resid_post-assistant"]
    )
    source_set_name: str = Field(serialization_alias="sourceSetName")
    index: str = Field(description="Number of the feature's id.", examples=["42"])
    pos_str: list[str] = Field(description="Tokens whose logits it raises most.")
    pos_values: list[float] = Field(description="By how much: logit lens at unit norm, less the vocabulary's mean.")
    neg_str: list[str]
    neg_values: list[float]
    frac_nonzero: float = Field(description="Share of the positions on which it fires.")
    max_act_approx: float = Field(serialization_alias="maxActApprox")
    activations: list[Activation] = Field(description="Strongest first; none where the family has no text.")
    explanations: list[Explanation] = Field(
        description="A person's label first, then a model's, then the automatic one."
    )


class Exporter:
    """Features of one checkpoint's code. Opens its files once, for many features. 404 where there is no code."""

    def __init__(self, session: Session, artifacts: ArtifactStore, family: Family, checkpoint: str | None) -> None:
        self.session, self.artifacts, self.family = session, artifacts, family
        self.checkpoint: Checkpoint = checkpoints.get_judged(session, family, checkpoint)
        self.code, _ = codes.code_of(session, family, self.checkpoint.name)
        self.columns = {int(n): column for column, n in enumerate(codes.feature_numbers(artifacts, self.code))}
        self.texts = _Texts(artifacts, family, self.code)
        sources = verdicts.sources(session, self.checkpoint.id)
        self.hook_point = _deepest([hook for hook in self.checkpoint.hook_points if hook in sources])

    def features(self, numbers: Sequence[int], limit: int) -> list[NeuronpediaFeature]:
        """Some of `columns`, in the order given, with up to `limit` passages each. 404 where one is not there."""
        for number in numbers:
            if number not in self.columns:
                raise NotFoundError(
                    f"The code of {self.checkpoint.name} has no feature {feature_id(number)}.", code="no-code"
                )
        found = queries.with_logits(self.session, self.family.id, numbers)
        rows = verdicts.standing(self.session, self.checkpoint.id, ["firing_rate"])
        rates = {int(row[0]): float(row[3]) for row in rows}
        return [self._feature(found[number], rates.get(number, 0.0), limit) for number in numbers]

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


class _Texts:
    """Passages of a code's examples."""

    def __init__(self, artifacts: ArtifactStore, family: Family, code: Code) -> None:
        with safe_open(str(artifacts.path(code.examples)), framework="numpy") as file:
            self.places, self.values = file.get_tensor("positions"), file.get_tensor("values")
        self.code = safe_open(str(artifacts.path(code.artifact)), framework="numpy")
        positions = family.positions or {}
        self.documents: Path | None = None
        if positions.get("documents"):
            self.documents = artifacts.path(positions["documents"])
            with safe_open(str(artifacts.path(positions["artifact"])), framework="numpy") as file:
                self.document, self.start, self.end = (file.get_tensor(name) for name in ("document", "start", "end"))

    def largest(self, column: int) -> float:
        return float(self.values[column].max(initial=0.0))

    def activations(self, column: int, limit: int) -> list[Activation]:
        """Passages around the places where a column fires most, strongest first, one for each place."""
        if self.documents is None:
            return []
        rows = [int(row) for row in self.places[column] if row >= 0][:limit]
        return [self._around(column, row, self.documents) for row in rows]

    def _around(self, column: int, row: int, documents: Path) -> Activation:
        first, last = max(0, row - AROUND), min(len(self.document), row + AROUND + 1)
        same = first + np.flatnonzero(self.document[first:last] == self.document[row])
        first, last = int(same[0]), int(same[-1]) + 1
        text = codes.document_text(documents, int(self.document[row])) or ""
        # From one token's end to the next one's: together the passage as it stands, blanks included.
        begins = [int(self.start[first]), *self.end[first : last - 1].tolist()]
        tokens = [text[begin:end] for begin, end in zip(begins, self.end[first:last].tolist(), strict=True)]
        values = self._values(column, first, last)
        at = row - first
        return Activation(
            tokens=tokens, values=values, max_value=values[at], max_value_token_index=at, min_value=min(values)
        )

    def _values(self, column: int, first: int, last: int) -> list[float]:
        """Activations of a column at the positions `first` to `last`."""
        ends = self.code.get_slice("indptr")[first : last + 1]
        part = slice(int(ends[0]), int(ends[-1]))
        latents, values = (self.code.get_slice(name)[part.start : part.stop] for name in ("indices", "values"))
        row = np.repeat(np.arange(last - first), np.diff(ends))
        found = np.zeros(last - first)
        found[row[latents == column]] = values[latents == column]
        return [round(float(value), 4) for value in found]


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


def _deepest(hook_points: Sequence[str]) -> str:
    """The hook point that promoted tokens are taken at."""
    kinds = ("attn_out", "mlp_out", "resid_post")
    return max(hook_points, key=lambda name: (int(name.partition(".")[2]), kinds.index(name.partition(".")[0])))
