"""What a checkpoint's features make of a contrast set, against the signature's baseline and the checkpoint before."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import stdtrit
from torch import Tensor

from featurewatch.service.kit.artifacts import ArtifactStore
from featurewatch.service.kit.ids import feature_id, parse_feature_id
from featurewatch.service.signatures import contrast
from featurewatch.service.signatures.logic import SignatureResult
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
"""of a feature that is chosen, by itself"""


@dataclass(frozen=True)
class SignatureQuestion:
    """One signature, as a run needs it."""

    id: str
    name: str
    settings: dict[str, Any]
    contrast: str
    chosen: list[dict[str, Any]] | None
    """Features of the signature; None: this run chooses them"""
    baseline: JudgedCheckpoint
    baseline_activations: str | None
    baseline_auroc: float | None
    before: JudgedCheckpoint | None
    """Nearest ancestor that was read"""
    before_activations: str | None

    def reader(
        self, artifacts: ArtifactStore, place: JudgedCheckpoint, activations: str, hook_points: list[str]
    ) -> ContrastReader:
        """The rows as a checkpoint's features read them."""
        return ContrastReader(artifacts, place, activations, hook_points, means=self.settings["position"] == "mean")


def paired(theirs: list[str], own: list[str]) -> dict[str, str]:
    """Another checkpoint's hook points -> one's own: by name, or, of as many, by place."""
    if len(theirs) == len(own) and set(theirs) != set(own):
        return dict(zip(theirs, own, strict=True))
    return {hook: hook for hook in theirs if hook in own}


@dataclass
class ContrastExperiment:
    """One contrast set, halved; and how intervals are made of it."""

    rows: list[contrast.StoredRow]
    settings: dict[str, Any]
    own: frozenset[int] = frozenset()
    """Numbers of the features that are asked about."""

    def __post_init__(self) -> None:
        positive = np.array([row.label for row in self.rows])
        group = np.array([row.group for row in self.rows])
        self.judged = halves(positive, group, self.settings["seed"])
        self.select: Rows = take(positive, group, ~self.judged)
        self.judge: Rows = take(positive, group, self.judged)
        folds = min(FOLDS, self.judge.n_groups)
        self.reach = float(stdtrit(folds - 1, 0.975))

    def choose(self, reader: ContrastReader, fdr: float) -> Chosen:
        """The features that separate the classes on one half."""
        m = reader.m * len(reader.hook_points)
        return choose(
            lambda columns: reader.block(columns, ~self.judged),
            m,
            self.select,
            most=self.settings["features"],
            fdr=fdr,
            least=LEAST_AUROC,
            seed=self.settings["seed"],
            to_q=benjamini_hochberg,
        )

    def score(self, reader: ContrastReader, columns: Columns, weight: Floats) -> Estimate:
        """AUROC on the other half."""
        if not len(columns):
            return Estimate(0.5, 0.0, 1.0)
        return auroc(reader.values(columns, self.judged) @ weight, self.judge, self.settings["seed"])

    def products(self, now: ContrastReader, at: Columns, before: ContrastReader, back: Columns) -> Strengths:
        """What the same features write in two checkpoints, sizes over those of a typical feature."""
        x, y = now.values(at, self.judged), before.values(back, self.judged)
        rows_c, rows_b = now.written(at), before.written(back)
        mapped = [b @ r for b, r in zip(rows_b, now.turns(before, self.own), strict=True)]
        grams = tuple(sum((a @ b.T for a, b in zip(*pair, strict=True)), torch.zeros(len(at), len(at))).double().numpy()
                      for pair in ((rows_c, rows_c), (rows_b, rows_b), (rows_c, mapped)))  # fmt: skip
        got = strengths(x, y, grams, self.judge)  # type: ignore[arg-type]
        size = typical_size(now, before)
        return Strengths(got.now / size**2, got.before, got.both / size)

    def ratios(self, now: ContrastReader, at: Columns, before: ContrastReader, back: Columns) -> dict[str, Any]:
        """What the same features write of the difference in two checkpoints (`written`, `before`), and with intervals
        over what they wrote before: the part `along` that, and `size`, whatever its direction."""
        got = self.products(now, at, before, back)
        written, wrote = np.sqrt(np.maximum(got.now, 0)), np.sqrt(np.maximum(got.before, 0))
        known = got.before.min() > 0
        return {
            "written": float(written[0]),
            "before": float(wrote[0]),
            "along": interval(got.both / got.before, self.reach) if known else None,
            "size": interval(written / wrote, self.reach) if known else None,
        }

    def probe(self, now: ContrastReader, baseline: ContrastReader) -> tuple[Estimate, Estimate | None]:
        """(AUROC of the checkpoint's own difference of means, distance of the means along the baseline's over its)."""
        own = _difference(solve_jointly(now.x, ~self.judged), self.select)
        found = auroc(solve_jointly(now.x, self.judged) @ own, self.judge, self.settings["seed"])
        x = [xs @ r for xs, r in zip(baseline.x, now.turns(baseline, self.own), strict=True)]
        direction = _difference(solve_jointly(x, ~self.judged), self.select)
        along = [(solve_jointly(part, self.judged) @ direction)[:, None] for part in (now.x, x)]
        one = np.ones((1, 1))
        got = strengths(along[0], along[1], (one, one, one), self.judge)
        # Distances along a line are products with the baseline's, whose own noise is in neither half.
        return found, interval(got.both / got.before, self.reach) if got.before.min() > 0 else None


def solve_jointly(x: list[Tensor], rows: NDArray[np.bool_]) -> Floats:
    return torch.cat([part[torch.from_numpy(rows)] for part in x], 1).double().numpy()


def _difference(x: Floats, rows: Rows) -> Floats:
    return np.asarray(x[rows.positive].mean(0) - x[~rows.positive].mean(0))


def judge_signature(
    artifacts: ArtifactStore, policy: Policy, place: JudgedCheckpoint, question: SignatureQuestion, read: dict[str, str]
) -> SignatureResult:
    """Everything about one signature in one checkpoint."""
    experiment = ContrastExperiment(contrast.load(artifacts.path(question.contrast)), question.settings)
    hooks = _hooks(question, question.baseline, place)
    now = question.reader(artifacts, place, read[question.id], list(hooks.values()))
    fresh = experiment.choose(now, policy.fdr)
    carriers = _named(now, fresh)
    if question.chosen is None:
        baseline, features = now, carriers
    else:
        assert question.baseline_activations is not None
        baseline = question.reader(artifacts, question.baseline, question.baseline_activations, list(hooks))
        features = question.chosen
    asked = [(parse_feature_id(one["feature"]), one["hook_point"]) for one in features]
    columns, known = now.find(asked, hooks if question.chosen is not None else {hook: hook for hook in now.hook_points})
    back = baseline.find(asked, {hook: hook for hook in baseline.hook_points})[0]
    weight = np.array([one["weight"] for one in features])[known] if features else np.zeros(0)
    experiment.own = frozenset(number for number, _ in asked) | {parse_feature_id(one["feature"]) for one in carriers}
    own = experiment.score(now, columns[known], weight)
    got = experiment.ratios(now, columns[known], baseline, back[known]) if known.any() else None
    held = _held(experiment, now, fresh, baseline, hooks, got)
    anew = experiment.score(now, fresh.columns, fresh.weight)
    evidence = Evidence(
        strength=_as_interval(got["along"] if got else None),
        auroc=Interval(*own),
        reselected=Interval(*anew),
        reselected_strength=held[0],
        reselected_before=held[1],
        baseline_auroc=own.value if question.baseline_auroc is None else question.baseline_auroc,
    )
    status, reason = judge(evidence, policy)
    if not asked:
        reason = "no feature separates the classes at the baseline, beyond what chance allows among so many"
    elif not known.any():
        reason = "a re-fit has retired the signature's features; make it anew with a later baseline"
    measured = {
        "strength_ratio": got["along"] if got else None,
        "change": _change(artifacts, experiment, question, now, baseline, asked, columns, known, place),
        "size_ratio": got["size"] if got else None,
        "auroc": own,
        "reselected_auroc": anew,
    } | dict(zip(("probe_auroc", "probe_ratio"), experiment.probe(now, baseline), strict=True))
    figures = {"strength": _rounded(got["before"] * got["along"].value if got and got["along"] else None)}
    for name, estimate in measured.items():
        figures |= _pair(name, estimate)
    figures |= {"reselected_strength": _rounded(held[0]), "reselected_before": _rounded(held[1])}
    figures |= _null(experiment, now, int(known.sum()))
    return SignatureResult(
        signature_id=question.id,
        status=status,
        reason=reason,
        figures=figures | {"features_read": int(known.sum()), "rows_judged": int(experiment.judged.sum())},
        carriers=carriers,
        chosen=carriers if question.chosen is None else None,
        activations=read[question.id],
    )


def _null(experiment: ContrastExperiment, now: ContrastReader, k: int) -> dict[str, float | None]:
    """What random sets of as many features do."""
    found = random_sets(
        lambda some: (now.values(some, ~experiment.judged), now.values(some, experiment.judged)),
        now.live, max(k, 1), experiment.select, experiment.judge, experiment.settings["seed"],
    )  # fmt: skip
    return {
        "random_auroc": _rounded(float(np.median(found))),
        "random_auroc_95": _rounded(float(np.quantile(found, 0.95))),
    }


def _hooks(question: SignatureQuestion, theirs: JudgedCheckpoint, place: JudgedCheckpoint) -> dict[str, str]:
    """Hook points of the baseline that the signature is read at -> this checkpoint's."""
    pairs = paired(theirs.hook_points, place.hook_points)
    wanted = question.settings["hook_points"]
    return {hook: own for hook, own in pairs.items() if wanted is None or hook in wanted}


def _held(
    experiment: ContrastExperiment,
    now: ContrastReader,
    fresh: Chosen,
    baseline: ContrastReader,
    hooks: dict[str, str],
    got: dict[str, Any] | None,
) -> tuple[float, float]:
    """What the features chosen anew write now, and wrote at the baseline, over the signature's strength there."""
    if not len(fresh.columns) or got is None or not got["before"]:
        return 0.0, 0.0
    features = [now.name(int(column)) for column in fresh.columns]
    back = baseline.find(features, {own: hook for hook, own in hooks.items()})[0]
    theirs = experiment.ratios(now, fresh.columns, baseline, back)
    return theirs["written"] / got["before"], theirs["before"] / got["before"]


def _change(
    artifacts: ArtifactStore,
    experiment: ContrastExperiment,
    question: SignatureQuestion,
    now: ContrastReader,
    baseline: ContrastReader,
    asked: list[tuple[int, str]],
    columns: Columns,
    known: NDArray[np.bool_],
    place: JudgedCheckpoint,
) -> Estimate | None:
    """Strength over that of the checkpoint before; None where none was read, or it surely writes nothing there."""
    if question.before is None or question.before_activations is None or not len(columns):
        return None
    pairs = {own: theirs for theirs, own in paired(question.before.hook_points, place.hook_points).items()}
    hooks = [pairs[hook] for hook in now.hook_points if hook in pairs]
    if len(hooks) != len(now.hook_points):
        return None
    before = question.reader(artifacts, question.before, question.before_activations, hooks)
    via = _hooks(question, question.baseline, question.before)
    if question.chosen is None:  # the features are this checkpoint's own
        via = dict(zip(now.hook_points, hooks, strict=True))
    then, there = before.find(asked, via)
    first = baseline.find(asked, {hook: hook for hook in baseline.hook_points})[0]
    both = known & there
    if not both.any():
        return None
    at, then, first = columns[both], then[both], first[both]
    latest, earlier = (
        experiment.products(now, at, baseline, first).both,
        experiment.products(before, then, baseline, first).both,
    )
    return interval(latest / earlier, experiment.reach) if earlier.min() > 0 else None


def _named(reader: ContrastReader, chosen: Chosen) -> list[dict[str, Any]]:
    found = []
    for column, weight, alone, q in zip(*chosen, strict=True):
        number, hook = reader.name(int(column))
        found.append({"feature": feature_id(number), "hook_point": hook, "weight": float(weight),
                      "auroc": round(float(alone), 4), "q_value": float(q)})  # fmt: skip
    return found


def _as_interval(estimate: Estimate | None) -> Interval | None:
    return None if estimate is None else Interval(*estimate)


def _pair(name: str, estimate: Estimate | None) -> dict[str, Any]:
    if estimate is None:
        return {name: None, f"{name}_ci": None}
    return {name: _rounded(estimate.value), f"{name}_ci": [_rounded(estimate.low), _rounded(estimate.high)]}


def _rounded(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 5)
