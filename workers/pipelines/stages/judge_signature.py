"""Judges a signature: how a checkpoint's features separate its contrast set, compared with the baseline."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.recording.signatures import SignatureResult
from featurewatch.service.signatures import contrast
from featurewatch.service.signatures.rule import Evidence, Interval, judge
from featurewatch.service.verdicts.judge import benjamini_hochberg
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.pipelines.shared.contrast_reader import (
    Columns,
    ContrastReader,
    Floats,
    JudgedCheckpoint,
    typical_size,
)
from featurewatch.workers.verdicts.contrast import (
    Chosen,
    Estimate,
    Rows,
    Strengths,
    auroc,
    choose,
    halves,
    interval,
    random_sets,
    strengths,
    take,
)
from featurewatch.workers.verdicts.folds import FOLDS

LEAST_AUROC = 0.6
"""Of a single feature that is chosen"""


@dataclass(frozen=True)
class SignatureQuestion:
    """A signature and what to compare it with."""

    id: str
    name: str
    settings: dict[str, Any]
    contrast: str
    chosen: list[dict[str, Any]] | None
    """Features of the signature. None: this run chooses them"""
    baseline: JudgedCheckpoint
    baseline_activations: str | None
    baseline_auroc: float | None
    before: JudgedCheckpoint | None
    """The nearest ancestor that was read"""
    before_activations: str | None

    def reader(
        self, artifacts: ArtifactStore, place: JudgedCheckpoint, activations: str, hook_points: list[str]
    ) -> ContrastReader:
        """The rows, read with a checkpoint's features."""
        return ContrastReader(artifacts, place, activations, hook_points, means=self.settings["position"] == "mean")


def paired(theirs: list[str], own: list[str]) -> dict[str, str]:
    """Another checkpoint's hook points -> one's own: by name, or if equally many, by position."""
    if len(theirs) == len(own) and set(theirs) != set(own):
        return dict(zip(theirs, own, strict=True))
    return {hook: hook for hook in theirs if hook in own}


@dataclass
class ContrastExperiment:
    """A contrast set split in two: one half selects features, the other judges them."""

    rows: list[contrast.StoredRow]
    settings: dict[str, Any]
    own: frozenset[int] = frozenset()
    """Numbers of the features in question"""

    def __post_init__(self) -> None:
        positive = np.array([row.label for row in self.rows])
        group = np.array([row.group for row in self.rows])
        self.judged = halves(positive, group, self.settings["seed"])
        self.select: Rows = take(positive, group, ~self.judged)
        self.judge: Rows = take(positive, group, self.judged)
        folds = min(FOLDS, self.judge.n_groups)
        self.reach = float(stdtrit(folds - 1, 0.975))

    def choose(self, reader: ContrastReader, fdr: float) -> Chosen:
        """The features that separate the classes on the selecting half."""
        m = reader.m * len(reader.hook_points)
        return choose(
            lambda part: reader.values(np.arange(part.start, part.stop), ~self.judged),
            m,
            self.select,
            most=self.settings["features"],
            fdr=fdr,
            least=LEAST_AUROC,
            seed=self.settings["seed"],
            to_q=benjamini_hochberg,
        )

    def score(self, reader: ContrastReader, columns: Columns, weight: Floats) -> Estimate:
        """AUROC on the judging half."""
        if not len(columns):
            return Estimate(0.5, 0.0, 1.0)
        return auroc(reader.values(columns, self.judged) @ weight, self.judge, self.settings["seed"])

    def products(self, now: ContrastReader, at: Columns, before: ContrastReader, back: Columns) -> Strengths:
        """What the same features write in two checkpoints, in units of a typical feature."""
        x, y = now.values(at, self.judged), before.values(back, self.judged)
        rows_c, rows_b = now.decoder_rows(at), before.decoder_rows(back)
        mapped = [b @ r for b, r in zip(rows_b, now.rotations(before, self.own), strict=True)]
        grams = tuple(sum((a @ b.T for a, b in zip(*pair, strict=True)), torch.zeros(len(at), len(at))).double().numpy()
                      for pair in ((rows_c, rows_c), (rows_b, rows_b), (rows_c, mapped)))  # fmt: skip
        sums = strengths(x, y, grams, self.judge)  # type: ignore[arg-type]
        size = typical_size(now, before)
        return Strengths(sums.now / size**2, sums.before, sums.both / size)

    def ratios(self, now: ContrastReader, at: Columns, before: ContrastReader, back: Columns) -> dict[str, Any]:
        """How much of the class difference the same features write in two checkpoints (`written`, `before`).

        Over what they wrote before, with intervals: the part `along` the same direction, and the whole `size`.
        """
        sums = self.products(now, at, before, back)
        written, wrote = np.sqrt(np.maximum(sums.now, 0)), np.sqrt(np.maximum(sums.before, 0))
        known = sums.before.min() > 0
        return {
            "written": float(written[0]),
            "before": float(wrote[0]),
            "along": interval(sums.both / sums.before, self.reach) if known else None,
            "size": interval(written / wrote, self.reach) if known else None,
        }

    def probe(self, now: ContrastReader, baseline: ContrastReader) -> tuple[Estimate, Estimate | None]:
        """(AUROC of the checkpoint's difference of means, its size along the baseline's over the baseline's)."""
        own = _difference(_joined(now.x, ~self.judged), self.select)
        separation = auroc(_joined(now.x, self.judged) @ own, self.judge, self.settings["seed"])
        x = [xs @ r for xs, r in zip(baseline.x, now.rotations(baseline, self.own), strict=True)]
        direction = _difference(_joined(x, ~self.judged), self.select)
        along = [(_joined(part, self.judged) @ direction)[:, None] for part in (now.x, x)]
        unit = np.ones((1, 1))
        sums = strengths(along[0], along[1], (unit, unit, unit), self.judge)
        # Distances are products with the baseline's on the other half, so neither contains its noise.
        return separation, interval(sums.both / sums.before, self.reach) if sums.before.min() > 0 else None


def _joined(x: list[Tensor], rows: NDArray[np.bool_]) -> Floats:
    return torch.cat([part[torch.from_numpy(rows)] for part in x], 1).double().numpy()


def _difference(x: Floats, rows: Rows) -> Floats:
    return np.asarray(x[rows.positive].mean(0) - x[~rows.positive].mean(0))


def judge_signature(
    artifacts: ArtifactStore,
    policy: Policy,
    checkpoint: JudgedCheckpoint,
    question: SignatureQuestion,
    activations: dict[str, str],
) -> SignatureResult:
    """Judge one signature in one checkpoint. activations: signature id -> artifact."""
    experiment = ContrastExperiment(contrast.load(artifacts.path(question.contrast)), question.settings)
    hooks = _hooks(question, question.baseline, checkpoint)
    now = question.reader(artifacts, checkpoint, activations[question.id], list(hooks.values()))
    chosen = experiment.choose(now, policy.fdr)
    carriers = _named(now, chosen)
    if question.chosen is None:
        baseline, features = now, carriers
    else:
        assert question.baseline_activations is not None
        baseline = question.reader(artifacts, question.baseline, question.baseline_activations, list(hooks))
        features = question.chosen
    wanted = [(parse_feature_id(feature["feature"]), feature["hook_point"]) for feature in features]
    own_hooks = {hook: hook for hook in now.hook_points}
    columns, known = now.find(wanted, own_hooks if question.chosen is None else hooks)
    back = baseline.find(wanted, {hook: hook for hook in baseline.hook_points})[0]
    weight = np.array([feature["weight"] for feature in features])[known] if features else np.zeros(0)
    experiment.own = frozenset(parse_feature_id(feature["feature"]) for feature in [*features, *carriers])
    own = experiment.score(now, columns[known], weight)
    ratios = experiment.ratios(now, columns[known], baseline, back[known]) if known.any() else None
    reselected = _held(experiment, now, chosen, baseline, hooks, ratios)
    fresh_score = experiment.score(now, chosen.columns, chosen.weight)
    evidence = Evidence(
        strength=Interval(*ratios["along"]) if ratios and ratios["along"] else None,
        auroc=Interval(*own),
        reselected=Interval(*fresh_score),
        reselected_strength=reselected[0],
        reselected_before=reselected[1],
        baseline_auroc=own.value if question.baseline_auroc is None else question.baseline_auroc,
    )
    status, reason = judge(evidence, policy)
    reason = _why_unreadable(wanted, known) or reason
    measured = {
        "strength_ratio": ratios["along"] if ratios else None,
        "change": _change(artifacts, experiment, question, now, baseline, wanted, columns, known, checkpoint),
        "size_ratio": ratios["size"] if ratios else None,
        "auroc": own,
        "reselected_auroc": fresh_score,
    } | dict(zip(("probe_auroc", "probe_ratio"), experiment.probe(now, baseline), strict=True))
    figures = {"strength": _rounded(ratios["before"] * ratios["along"].value if ratios and ratios["along"] else None)}
    for name, estimate in measured.items():
        figures |= _pair(name, estimate)
    figures |= {"reselected_strength": _rounded(reselected[0]), "reselected_before": _rounded(reselected[1])}
    figures |= {"features_read": int(known.sum()), "rows_judged": int(experiment.judged.sum())}
    return SignatureResult(
        signature_id=question.id,
        status=status,
        reason=reason,
        figures=figures | _null(experiment, now, int(known.sum())),
        carriers=carriers,
        chosen=carriers if question.chosen is None else None,
        activations=activations[question.id],
    )


def _why_unreadable(wanted: list[tuple[int, str]], known: NDArray[np.bool_]) -> str | None:
    """Why there is no feature to read, if there is none."""
    if not wanted:
        return "no feature separates the classes at the baseline significantly, after correcting for their number"
    if not known.any():
        return "a re-fit has retired the signature's features; create it again with a later baseline"
    return None


def _null(experiment: ContrastExperiment, now: ContrastReader, k: int) -> dict[str, float | None]:
    """AUROC of random feature sets of the same size."""
    aurocs = random_sets(
        lambda columns: (now.values(columns, ~experiment.judged), now.values(columns, experiment.judged)),
        now.live, max(k, 1), experiment.select, experiment.judge, experiment.settings["seed"],
    )  # fmt: skip
    return {
        "random_auroc": _rounded(float(np.median(aurocs))),
        "random_auroc_95": _rounded(float(np.quantile(aurocs, 0.95))),
    }


def _hooks(question: SignatureQuestion, theirs: JudgedCheckpoint, checkpoint: JudgedCheckpoint) -> dict[str, str]:
    """The baseline's hook points of the signature -> this checkpoint's."""
    pairs = paired(theirs.hook_points, checkpoint.hook_points)
    wanted = question.settings["hook_points"]
    return {hook: own for hook, own in pairs.items() if wanted is None or hook in wanted}


def _held(
    experiment: ContrastExperiment,
    now: ContrastReader,
    chosen: Chosen,
    baseline: ContrastReader,
    hooks: dict[str, str],
    ratios: dict[str, Any] | None,
) -> tuple[float, float]:
    """What the newly chosen features write now and at the baseline, over the signature's strength at the baseline."""
    if not len(chosen.columns) or ratios is None or not ratios["before"]:
        return 0.0, 0.0
    features = [now.name(int(column)) for column in chosen.columns]
    back = baseline.find(features, {own: hook for hook, own in hooks.items()})[0]
    theirs = experiment.ratios(now, chosen.columns, baseline, back)
    return theirs["written"] / ratios["before"], theirs["before"] / ratios["before"]


def _change(
    artifacts: ArtifactStore,
    experiment: ContrastExperiment,
    question: SignatureQuestion,
    now: ContrastReader,
    baseline: ContrastReader,
    wanted: list[tuple[int, str]],
    columns: Columns,
    known: NDArray[np.bool_],
    checkpoint: JudgedCheckpoint,
) -> Estimate | None:
    """Strength over that in the previous checkpoint. None if that was not read, or clearly writes nothing."""
    if question.before is None or question.before_activations is None or not len(columns):
        return None
    pairs = {own: theirs for theirs, own in paired(question.before.hook_points, checkpoint.hook_points).items()}
    hooks = [pairs[hook] for hook in now.hook_points if hook in pairs]
    if len(hooks) != len(now.hook_points):
        return None
    before = question.reader(artifacts, question.before, question.before_activations, hooks)
    via = _hooks(question, question.baseline, question.before)
    if question.chosen is None:  # the features are those of this checkpoint
        via = dict(zip(now.hook_points, hooks, strict=True))
    then, there = before.find(wanted, via)
    first = baseline.find(wanted, {hook: hook for hook in baseline.hook_points})[0]
    both = known & there
    if not both.any():
        return None
    at, then, first = columns[both], then[both], first[both]
    latest = experiment.products(now, at, baseline, first).both
    earlier = experiment.products(before, then, baseline, first).both
    return interval(latest / earlier, experiment.reach) if earlier.min() > 0 else None


def _named(reader: ContrastReader, chosen: Chosen) -> list[dict[str, Any]]:
    named = []
    for column, weight, alone, q in zip(*chosen, strict=True):
        number, hook = reader.name(int(column))
        named.append({"feature": feature_id(number), "hook_point": hook, "weight": float(weight),
                      "auroc": round(float(alone), 4), "q_value": float(q)})  # fmt: skip
    return named


def _pair(name: str, estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {name: None, f"{name}_ci": None}
    return {name: _rounded(estimate.value), f"{name}_ci": [_rounded(estimate.low), _rounded(estimate.high)]}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 5)
