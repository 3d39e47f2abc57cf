"""`/v1/families/{family}/features/labels`, and features for Neuronpedia-style viewers."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.families.lookup import ReadFamily, WriteFamily
from featurewatch.service.features import logic as features
from featurewatch.service.kit.pages import Page, Paging, SortKey, check
from featurewatch.service.kit.routing import accepted
from featurewatch.service.kit.sessions import AppArtifacts, ReadSession, WriteSession
from featurewatch.service.labels import logic
from featurewatch.service.labels.neuronpedia import Exporter, NeuronpediaFeature
from featurewatch.service.labels.schemas import LabelIn
from featurewatch.service.models import Feature
from featurewatch.service.runs.schemas import RunView, view

router = APIRouter(prefix="/v1/families/{family}", tags=["features"], dependencies=[BY_METHOD])


CheckpointQuery = Annotated[
    str | None, Query(description="Checkpoint whose code is used. Default: the newest judged one.")
]
PassagesQuery = Annotated[int, Query(ge=0, le=16, description="Number of passages per feature.")]


@router.post("/features/labels", status_code=202, summary="Label features with the configured model")
def label(family: WriteFamily, body: LabelIn, session: WriteSession, response: Response) -> RunView:
    """Queues a run of the kind `label`, which sends passages of the probe corpus to FEATUREWATCH_LABEL_URL. Labels are
    for readers only; no verdict uses them."""
    run, checkpoint = logic.create(session, family, body)
    accepted(response, f"/v1/runs/{run.id}")
    return view(run, family.name, checkpoint)


@router.get("/features/{feature}/neuronpedia", summary="Get a feature for Neuronpedia-style viewers")
def one_for_viewers(
    family: ReadFamily,
    feature: str,
    session: ReadSession,
    artifacts: AppArtifacts,
    checkpoint: CheckpointQuery = None,
    passages: PassagesQuery = 10,
) -> NeuronpediaFeature:
    number = features.get(session, family, feature).number
    return Exporter(session, artifacts, family, checkpoint).features([number], passages)[0]


@router.get("/neuronpedia", summary="List the features of a checkpoint for Neuronpedia-style viewers")
def all_for_viewers(
    family: ReadFamily,
    session: ReadSession,
    artifacts: AppArtifacts,
    paging: Paging,
    checkpoint: CheckpointQuery = None,
    passages: PassagesQuery = 10,
) -> Page[NeuronpediaFeature]:
    exporter = Exporter(session, artifacts, family, checkpoint)
    order = f"neuronpedia:{exporter.code.checkpoint_id}"
    after = paging.after(order)
    if after is not None:
        check([SortKey(Feature.number)], after)
    numbers = sorted(number for number in exporter.columns if after is None or number > after[0])
    page, cursor = paging.page(numbers[: paging.limit + 1], order, lambda number: (number,))
    return Page(data=exporter.features(page, passages), next_cursor=cursor)
