"""Reading signatures in a judged checkpoint: run its model on the contrast rows, then judge what its features read.

Activations are stored under a name made from checkpoint and contrast set, so a run that was killed resumes where it
stopped, and later checkpoints are compared with earlier ones without running a model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from safetensors.torch import load_file, save_file
from torch import Tensor

from featurewatch.service.checkpoints.contents import ACTIVATIONS
from featurewatch.service.kit.digests import ChangedWhileReadError, FileState, sha256
from featurewatch.service.kit.paths import hold_to_roots
from featurewatch.service.models import Checkpoint
from featurewatch.service.recording import signatures as recording
from featurewatch.service.signatures import contrast, logic, queries
from featurewatch.service.verdicts import queries as verdicts
from featurewatch.service.verdicts.policy import Policy
from featurewatch.workers.activations.contrast import Row, open_prompts, read_prompts
from featurewatch.workers.activations.models.loading import compute_dtype, load_model
from featurewatch.workers.activations.sources.fetch import locate
from featurewatch.workers.activations.sources.identity import Verified, changed
from featurewatch.workers.errors import RunError
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import artifact_name, device_of
from featurewatch.workers.pipelines.shared.contrast_reader import JudgedCheckpoint
from featurewatch.workers.pipelines.shared.identity import content_digest, verified_checkpoint, watched
from featurewatch.workers.pipelines.stages.judge_signature import SignatureQuestion, judge_signature

log = structlog.get_logger("featurewatch.worker")


@dataclass(frozen=True)
class SignatureRequest:
    """The inputs of a run: plain copies of the rows it needs."""

    policy: Policy
    checkpoint: JudgedCheckpoint
    questions: list[SignatureQuestion]
    missing: dict[str, str]
    """Signature -> why it cannot be read yet"""
    hook_points: list[str]
    precomputed: bool


def run(execution: Execution) -> None:
    """Read the run's signatures in its checkpoint, and judge each."""
    request = load_request(execution, str(execution.checkpoint_id), execution.params["signatures"])
    for name, reason in request.missing.items():
        log.warning("cannot read a signature yet", signature=name, reason=reason)
    if not request.questions:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in request.missing.items())
        raise RunError("nothing-to-read", reasons or "the signatures of this run were removed")
    with execution.stage("read"):
        artifacts = read(execution, request)
    findings = []
    with execution.stage("judge"):
        for number, question in enumerate(request.questions):
            execution.check()
            execution.progress(number / len(request.questions), signature=question.name)
            findings.append(
                judge_signature(execution.artifacts, request.policy, request.checkpoint, question, artifacts)
            )
            log.info("signature", name=question.name, status=findings[-1].status)
    with execution.write() as session:
        result = recording.record(session, str(execution.checkpoint_id), findings)
        execution.finish(session, result | ({"not_read": request.missing} if request.missing else {}))


def load_request(execution: Execution, checkpoint_id: str, signatures: list[str]) -> SignatureRequest:
    """The inputs for reading signatures in a judged checkpoint. RunError `not-judged`."""
    with execution.read() as session:
        checkpoint = verdicts.checkpoint(session, checkpoint_id)
        family = verdicts.family(session, checkpoint.family_id)
        if checkpoint.state != "judged":
            raise RunError(
                "not-judged", f"{checkpoint.name} is {checkpoint.state}; signatures need a judged checkpoint"
            )
        questions, missing = [], {}
        for row in queries.by_ids(session, signatures):
            baseline = queries.reading(session, row.id, row.baseline_id)
            if checkpoint.id != row.baseline_id and (baseline is None or row.chosen is None):
                name = verdicts.checkpoint(session, row.baseline_id).name
                missing[row.name] = f"its baseline {name} has not been read; retry this run once it has"
                continue
            before = logic.previous(session, row.id, checkpoint)
            questions.append(
                SignatureQuestion(
                    id=row.id,
                    name=row.name,
                    settings=dict(row.settings),
                    contrast=row.contrast,
                    chosen=None if checkpoint.id == row.baseline_id else row.chosen,
                    baseline=_judged_checkpoint(session, verdicts.checkpoint(session, row.baseline_id)),
                    baseline_activations=baseline.activations if baseline else None,
                    baseline_auroc=baseline.figures["auroc"] if baseline else None,
                    before=_judged_checkpoint(session, verdicts.checkpoint(session, before.checkpoint_id))
                    if before
                    else None,
                    before_activations=before.activations if before else None,
                )
            )
        return SignatureRequest(
            policy=Policy.model_validate(family.policy),
            checkpoint=_judged_checkpoint(session, checkpoint),
            questions=questions,
            missing=missing,
            hook_points=list(checkpoint.hook_points),
            precomputed=checkpoint.uri.startswith(ACTIVATIONS),
        )


def _judged_checkpoint(session: Any, checkpoint: Checkpoint) -> JudgedCheckpoint:
    code, sources = verdicts.code(session, checkpoint.id), verdicts.sources(session, checkpoint.id)
    assert code is not None
    hooks = [hook for hook in checkpoint.hook_points if hook in sources]
    return JudgedCheckpoint(
        checkpoint.id, checkpoint.family_id, code.artifact, hooks, [str(sources[h].dictionary) for h in hooks]
    )


def read(execution: Execution, request: SignatureRequest) -> dict[str, str]:
    """Signature id -> artifact with the activations of its rows, at all hook points of the checkpoint."""
    checkpoint_id = request.checkpoint.id
    if request.precomputed:
        with verified_checkpoint(execution, checkpoint_id) as (_, checkpoint):
            folder = locate(checkpoint.uri, checkpoint.roots, execution.settings.cache_dir)
            return _copy_contrast(execution, request, folder)
    content = content_digest(execution, checkpoint_id)
    names = {question.id: _artifact(execution, request, question, content) for question in request.questions}
    wanted = {
        names[question.id]: question
        for question in request.questions
        if not execution.artifacts.exists(names[question.id])
    }
    if wanted:
        with (
            verified_checkpoint(execution, checkpoint_id) as (_, checkpoint),
            watched(execution, checkpoint) as check,
        ):
            activations = _run(execution, request, checkpoint, wanted, check)
        for name, tensors in activations.items():
            _store(execution, name, tensors)
    return names


def _artifact(execution: Execution, request: SignatureRequest, question: SignatureQuestion, content: str) -> str:
    """Name of the artifact with a signature's rows as read by a checkpoint with this content."""
    return artifact_name(
        request.checkpoint.family_id, "contrast-activations",
        rows=execution.artifacts.path(question.contrast).read_text(encoding="utf-8"), content=content,
        hook_points=request.hook_points, position=question.settings["position"],
        template=question.settings["template"],
    )  # fmt: skip


def _store(execution: Execution, name: str, tensors: dict[str, Tensor]) -> None:
    with execution.artifacts.create(name) as place:
        save_file({hook: x.contiguous() for hook, x in tensors.items()}, place)


def _run(
    execution: Execution,
    request: SignatureRequest,
    checkpoint: Verified,
    wanted: dict[str, SignatureQuestion],
    check: Callable[[], None],
) -> dict[str, dict[str, Tensor]]:
    """Artifact -> activations of a signature's rows, from the model, which is loaded once."""
    device = str(device_of(execution.settings))
    model, tokenizer = load_model(
        checkpoint.uri, checkpoint.adapter, roots=checkpoint.roots, device=device, dtype=compute_dtype(device),
        cache_dir=execution.settings.cache_dir,
    )  # fmt: skip
    activations = {}
    for number, (name, question) in enumerate(wanted.items()):
        rows = [Row(row.text, row.answer) for row in contrast.load(execution.artifacts.path(question.contrast))]
        settings = question.settings
        prompts = open_prompts(model, tokenizer, rows, settings["position"], template=settings["template"])

        def progress(fraction: float, done: int = number) -> None:
            execution.progress((done + fraction) / len(wanted))

        activations[name] = read_prompts(model, request.hook_points, prompts, on_progress=progress, check=check)
    return activations


def _copy_contrast(execution: Execution, request: SignatureRequest, folder: Path) -> dict[str, str]:
    """From `contrast/<signature>.safetensors` next to precomputed activations."""
    names = {}
    for question in request.questions:
        path = folder / "contrast" / f"{question.name}.safetensors"
        if path.is_file():
            hold_to_roots(path, (*execution.settings.root_dirs, execution.settings.cache_dir.resolve()))
        before = FileState.of(path) if path.is_file() else None  # before hashing, to notice a later change
        try:
            digest = sha256(path) if before else "missing"
        except ChangedWhileReadError as error:
            raise changed(f"{path.name} changed while it was read") from error
        names[question.id] = _artifact(execution, request, question, digest)
        if not execution.artifacts.exists(names[question.id]):
            tensors = _contrast_tensors(path, question, request, execution)
            if FileState.of(path) != before:
                raise changed(f"{path.name} changed")
            _store(execution, names[question.id], tensors)
    return names


def _contrast_tensors(
    path: Path, question: SignatureQuestion, request: SignatureRequest, execution: Execution
) -> dict[str, Tensor]:
    if not path.is_file():
        raise RunError(
            "contrast-not-brought",
            f"this checkpoint has precomputed activations, so contrast/{question.name}.safetensors must be next to "
            f"them: a tensor [rows, d_model] for each of {', '.join(request.hook_points)}, in the order of the rows",
        )
    tensors = load_file(path)
    rows = len(contrast.load(execution.artifacts.path(question.contrast)))
    for hook in request.hook_points:
        x = tensors.get(hook)
        if x is None or x.dim() != 2 or len(x) != rows or not bool(x.isfinite().all()):
            problem = "is missing" if x is None else f"has shape {list(x.shape)}, or values that are not finite"
            raise RunError("contrast-invalid", f"{path.name}: {hook} {problem}; expected shape [{rows}, d_model]")
    return {hook: tensors[hook].float() for hook in request.hook_points}
