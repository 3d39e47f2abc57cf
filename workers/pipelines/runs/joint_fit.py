"""The first fit over several checkpoints, such as base and chat, or two model sizes. It judges all of them."""

from dataclasses import replace

from featurewatch.service.recording import verdicts
from featurewatch.workers.execution import Execution
from featurewatch.workers.pipelines.shared.context import EarlierCheckpoint, OnboardingContext, ParentCheckpoint
from featurewatch.workers.pipelines.shared.pairing import ParentPair, pair_with_parent
from featurewatch.workers.pipelines.shared.sources import Activations
from featurewatch.workers.pipelines.stages import record
from featurewatch.workers.pipelines.stages.compare import compare_with_parent
from featurewatch.workers.pipelines.stages.fit import fit_dictionary
from featurewatch.workers.pipelines.stages.harvest import Harvest, open_earlier
from featurewatch.workers.pipelines.stages.judge import ParentComparison


def fit_jointly(execution: Execution, context: OnboardingContext, harvest: Harvest) -> None:
    """Fit over the waiting checkpoints and this one, judge each against its parent, and write everything."""
    widths = dict(zip(context.hook_points, harvest.activations.widths, strict=True))
    newest = EarlierCheckpoint(
        id=context.checkpoint_id,
        name=context.name,
        hook_points=context.hook_points,
        widths=widths,
        activations=dict.fromkeys(widths, harvest.folder),
        dictionaries={},
        uri=context.uri,
        adapter=context.adapter,
    )
    members = [*context.waiting, newest]
    opened = [*(open_earlier(execution, context, member) for member in context.waiting), harvest.activations]
    folders = [member.activations[member.hook_points[0]] for member in members]
    with execution.stage("fit"):
        basis = fit_dictionary(execution, context, opened, folders)
    outcomes: list[tuple[str, verdicts.Outcome]] = []
    parent: ParentCheckpoint | None = None
    previous: tuple[Activations, ParentComparison] | None = None
    for member, activations, folder in zip(members, opened, folders, strict=True):
        member_context = replace(
            context,
            checkpoint_id=member.id,
            name=member.name,
            hook_points=member.hook_points,
            uri=member.uri,
            adapter=member.adapter,
            parent=parent,
            # The features get their ids with the first member's record.
            n_features=context.n_features if parent is None else context.n_features + basis.code.m,
        )
        if previous is None:
            pair = ParentPair(member_context, activations)
        else:
            before, comparison = previous
            pair = pair_with_parent(
                execution, member_context, activations, before, comparison.gone, comparison.evidence.readability
            )
        with compare_with_parent(execution, pair, basis) as comparison:
            outcomes.append((member.id, record.describe(execution, comparison, folder, harvest.positions)))
        previous = activations, comparison
        parent = ParentCheckpoint(
            **vars(member) | {"dictionaries": comparison.measurements.dictionaries},
            code=basis.artifact,
            generation=context.generation,
            own_code=comparison.activity.own_code if comparison.activity else None,
            rows=comparison.activity.rows if comparison.activity else None,
        )
    record.write(execution, outcomes)
