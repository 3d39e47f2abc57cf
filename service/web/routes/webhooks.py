"""Webhooks: where events are sent, and what came of it."""

from fastapi import Request
from starlette.responses import Response

from featurewatch.service.kit.pages import Paging
from featurewatch.service.kit.sessions import AppSettings, ReadSession, WriteSession
from featurewatch.service.web.access import SentForm, filled, pages
from featurewatch.service.web.render import address, back, is_fragment, page
from featurewatch.service.webhooks import routes as webhooks
from featurewatch.service.webhooks.schemas import EventType, RotateBody, WebhookCreate, WebhookUpdate

router = pages()


@router.get("/webhooks")
def list_webhooks(request: Request, session: ReadSession, paging: Paging) -> Response:
    found = webhooks.list_webhooks(session, paging)
    return page(request, "notify/webhooks.html", rows=found.data, next_cursor=found.next_cursor, events=list(EventType))


@router.post("/webhooks")
def create_webhook(request: Request, session: WriteSession, settings: AppSettings, form: SentForm) -> Response:
    body = filled(
        WebhookCreate, url=form.one("url"), event_types=form.all("event"), format=form.one("format") or "standard"
    )
    made = webhooks.create_webhook(body, session, settings, Response())
    return page(request, "notify/secret.html", webhook=made, secret=True, status=201)


@router.get("/webhooks/{webhook_id}")
def show_webhook(request: Request, webhook_id: str, session: ReadSession, paging: Paging) -> Response:
    webhook = webhooks.get_webhook(webhook_id, session)
    found = webhooks.list_deliveries(webhook_id, session, paging)
    template = "notify/delivery_rows.html" if is_fragment(request) else "notify/webhook.html"
    return page(request, template, webhook=webhook, rows=found.data, next_cursor=found.next_cursor)


@router.post("/webhooks/{webhook_id}")
def change_webhook(
    request: Request, webhook_id: str, session: WriteSession, settings: AppSettings, form: SentForm
) -> Response:
    match form.one("do"):
        case "test":
            webhooks.test_webhook(webhook_id, session, Response())
        case "enable" | "disable" as what:
            webhooks.change_webhook(webhook_id, WebhookUpdate(enabled=what == "enable"), session, settings)
        case "rotate":
            made = webhooks.rotate_secret(webhook_id, session, settings, Response(), RotateBody())
            return page(request, "notify/secret.html", webhook=made, secret=True)
        case "delete":
            webhooks.delete_webhook(webhook_id, session)
            return back("/webhooks")
    return back(address("webhooks", webhook_id))


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/redeliver")
def redeliver(request: Request, webhook_id: str, delivery_id: str, session: WriteSession, form: SentForm) -> Response:
    webhooks.redeliver(webhook_id, delivery_id, session, Response())
    return back(address("webhooks", webhook_id))
