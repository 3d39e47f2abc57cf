"""Webhooks and their deliveries."""

from fastapi import Request
from starlette.responses import Response

from featurewatch.service.kit.pages import Paging
from featurewatch.service.kit.sessions import AppSettings, ReadSession, WriteSession
from featurewatch.service.web.access import SentForm, pages, validated
from featurewatch.service.web.render import address, back, is_fragment, page
from featurewatch.service.webhooks import logic
from featurewatch.service.webhooks.schemas import EventType, RotateBody, WebhookCreate, WebhookUpdate, view

router = pages()


@router.get("/webhooks")
def list_webhooks(request: Request, session: ReadSession, paging: Paging) -> Response:
    webhooks = logic.page(session, paging)
    return page(
        request, "notify/webhooks.html", rows=webhooks.data, next_cursor=webhooks.next_cursor, events=list(EventType)
    )


@router.post("/webhooks")
def create_webhook(request: Request, session: WriteSession, settings: AppSettings, form: SentForm) -> Response:
    body = validated(
        WebhookCreate, url=form.text("url"), event_types=form.all("event"), format=form.text("format") or "standard"
    )
    webhook, key = logic.create(session, settings, body)
    return page(request, "notify/secret.html", webhook=webhook, key=key, secret=True, status=201)


@router.get("/webhooks/{webhook_id}")
def show_webhook(request: Request, webhook_id: str, session: ReadSession, paging: Paging) -> Response:
    webhook = logic.get(session, webhook_id)
    deliveries = logic.deliveries(session, paging, webhook)
    template = "notify/delivery_rows.html" if is_fragment(request) else "notify/webhook.html"
    return page(request, template, webhook=view(webhook), rows=deliveries.data, next_cursor=deliveries.next_cursor)


@router.post("/webhooks/{webhook_id}")
def change_webhook(
    request: Request, webhook_id: str, session: WriteSession, settings: AppSettings, form: SentForm
) -> Response:
    webhook = logic.get(session, webhook_id)
    match form.text("do"):
        case "test":
            logic.test(session, webhook)
        case "enable" | "disable" as switch:
            logic.change(session, settings, webhook, WebhookUpdate(enabled=switch == "enable"))
        case "rotate":
            key = logic.rotate(session, settings, webhook, RotateBody())
            return page(request, "notify/secret.html", webhook=webhook, key=key, secret=True)
        case "delete":
            session.delete(webhook)
            return back("/webhooks")
    return back(address("webhooks", webhook_id))


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver")
def redeliver(webhook_id: str, delivery_id: str, session: WriteSession) -> Response:
    logic.redeliver(session, logic.get(session, webhook_id), delivery_id)
    return back(address("webhooks", webhook_id))
