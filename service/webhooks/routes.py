"""`/v1/webhooks`: webhooks and their deliveries."""

from typing import Annotated, Literal

from fastapi import APIRouter, Body, Response

from featurewatch.service.auth.guard import BY_METHOD
from featurewatch.service.kit.pages import Page, Paging
from featurewatch.service.kit.sessions import AppSettings, ReadSession, WriteSession
from featurewatch.service.webhooks import logic, schemas

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], dependencies=[BY_METHOD])


@router.post("", status_code=201, summary="Create a webhook; its secret is shown only in this response")
def create_webhook(
    body: schemas.WebhookCreate, session: WriteSession, settings: AppSettings, response: Response
) -> schemas.WebhookCreated:
    webhook, secret = logic.create(session, settings, body)
    response.headers["Location"] = f"/v1/webhooks/{webhook.id}"
    response.headers["Cache-Control"] = "no-store"
    return schemas.created(webhook, secret)


@router.get("", summary="List webhooks, newest first")
def list_webhooks(session: ReadSession, paging: Paging) -> Page[schemas.WebhookView]:
    return logic.page(session, paging)


@router.get("/{webhook_id}", summary="Get a webhook")
def get_webhook(webhook_id: str, session: ReadSession) -> schemas.WebhookView:
    return schemas.view(logic.get(session, webhook_id))


@router.patch("/{webhook_id}", summary="Update the URL, event types or format of a webhook, or enable or disable it")
def change_webhook(
    webhook_id: str, body: schemas.WebhookUpdate, session: WriteSession, settings: AppSettings
) -> schemas.WebhookView:
    webhook = logic.get(session, webhook_id)
    logic.change(session, settings, webhook, body)
    return schemas.view(webhook)


@router.delete("/{webhook_id}", status_code=204, summary="Delete a webhook and its deliveries")
def delete_webhook(webhook_id: str, session: WriteSession) -> Response:
    session.delete(logic.get(session, webhook_id))
    return Response(status_code=204)


@router.post("/{webhook_id}/rotate", summary="Rotate the secret; the new one is shown only in this response")
def rotate_secret(
    webhook_id: str,
    session: WriteSession,
    settings: AppSettings,
    response: Response,
    body: Annotated[schemas.RotateBody | None, Body()] = None,
) -> schemas.WebhookCreated:
    """Deliveries are signed with both secrets until the old one expires."""
    webhook = logic.get(session, webhook_id)
    secret = logic.rotate(session, settings, webhook, body or schemas.RotateBody())
    response.headers["Cache-Control"] = "no-store"
    return schemas.created(webhook, secret)


@router.post("/{webhook_id}/test", status_code=202, summary="Send a test event")
def test_webhook(webhook_id: str, session: WriteSession, response: Response) -> schemas.DeliveryView:
    webhook = logic.get(session, webhook_id)
    delivery, event = logic.test(session, webhook)
    response.headers["Location"] = f"/v1/webhooks/{webhook.id}/deliveries/{delivery.id}"
    return schemas.delivery_view(delivery, event.type)


@router.get("/{webhook_id}/deliveries", summary="List the deliveries of a webhook, newest first")
def list_deliveries(
    webhook_id: str,
    session: ReadSession,
    paging: Paging,
    state: Literal["pending", "delivered", "failed"] | None = None,
) -> Page[schemas.DeliveryView]:
    return logic.deliveries(session, paging, logic.get(session, webhook_id), state)


@router.get("/{webhook_id}/deliveries/{delivery_id}", summary="Get a delivery with its attempts")
def get_delivery(webhook_id: str, delivery_id: str, session: ReadSession) -> schemas.DeliveryView:
    return schemas.delivery_view(*logic.get_delivery(session, logic.get(session, webhook_id), delivery_id))


@router.post("/{webhook_id}/deliveries/{delivery_id}/redeliver", status_code=202, summary="Send a delivery again")
def redeliver(webhook_id: str, delivery_id: str, session: WriteSession, response: Response) -> schemas.DeliveryView:
    """Sends the same body with the same `webhook-id` at once and restarts the retry schedule."""
    delivery, event_type = logic.redeliver(session, logic.get(session, webhook_id), delivery_id)
    response.headers["Location"] = f"/v1/webhooks/{webhook_id}/deliveries/{delivery.id}"
    return schemas.delivery_view(delivery, event_type)
