"""SQL of webhooks, events and deliveries."""

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.orm import Session

from featurewatch.service.kit.db import changes_one_row
from featurewatch.service.models import Delivery, Event, Webhook


def listening(session: Session) -> Sequence[Webhook]:
    """Webhooks that get deliveries of new events: enabled ones, and paused ones, whose deliveries are held."""
    return session.scalars(select(Webhook).where(or_(Webhook.enabled, Webhook.paused_at.is_not(None)))).all()


def paused(session: Session) -> Sequence[Webhook]:
    """Webhooks that were paused because all deliveries failed for days."""
    return session.scalars(select(Webhook).where(Webhook.paused_at.is_not(None)).order_by(Webhook.id)).all()


def locked(session: Session) -> Sequence[Webhook]:
    """All webhooks, locked until the transaction ends."""
    return session.scalars(select(Webhook).order_by(Webhook.id).with_for_update()).all()


def deliveries(webhook_id: str) -> Select[Delivery, str]:
    """Select (delivery, event type) of one webhook, in no order."""
    statement = select(Delivery, Event.type).join(Event, Event.id == Delivery.event_id)
    return statement.where(Delivery.webhook_id == webhook_id)


def due(
    session: Session, *, now: datetime, limit: int, excluding: Collection[str] = ()
) -> Sequence[tuple[Delivery, Webhook, Event]]:
    """Due deliveries, longest due first, without those of the webhooks in `excluding`."""
    return session.execute(
        select(Delivery, Webhook, Event)
        .join(Webhook, Webhook.id == Delivery.webhook_id)
        .join(Event, Event.id == Delivery.event_id)
        .where(Delivery.state == "pending", Delivery.next_attempt_at <= now, Webhook.enabled)
        .where(Webhook.id.not_in(excluding))
        .order_by(Delivery.next_attempt_at, Delivery.id)
        .limit(limit)
    ).all()


def reserve(session: Session, delivery_id: str, *, now: datetime, until: datetime) -> bool:
    """Reserve a due delivery until a time. False if another sweep took it first."""
    return changes_one_row(
        session,
        update(Delivery)
        .where(Delivery.id == delivery_id, Delivery.state == "pending", Delivery.next_attempt_at <= now)
        .values(next_attempt_at=until),
    )


def settle(session: Session, delivery_id: str, *, reserved_until: datetime, **values: Any) -> bool:
    """Write the result of an attempt. False if the reservation expired and the delivery was taken again."""
    return changes_one_row(
        session,
        update(Delivery)
        .where(Delivery.id == delivery_id, Delivery.state == "pending", Delivery.next_attempt_at == reserved_until)
        .values(**values),
    )


def clear_failing(session: Session, webhook_id: str) -> None:
    """Note a successful delivery."""
    session.execute(
        update(Webhook).where(Webhook.id == webhook_id, Webhook.failing_since.is_not(None)).values(failing_since=None)
    )


def set_failing(session: Session, webhook_id: str, now: datetime) -> datetime | None:
    """Note a failed delivery. Returns since when all have failed, or None if the webhook is not enabled."""
    return session.scalar(
        update(Webhook)
        .where(Webhook.id == webhook_id, Webhook.enabled)
        .values(failing_since=func.coalesce(Webhook.failing_since, now))
        .returning(Webhook.failing_since)
        .execution_options(synchronize_session=False)
    )


def pause(session: Session, webhook_id: str, now: datetime, reason: str) -> None:
    """Stop sending to a webhook and hold its pending deliveries."""
    session.execute(
        update(Webhook)
        .where(Webhook.id == webhook_id, Webhook.enabled)
        .values(enabled=False, paused_at=now, disabled_reason=reason)
    )


def disable(session: Session, webhook_id: str, reason: str) -> None:
    """Stop sending to a webhook and fail its pending deliveries."""
    session.execute(update(Webhook).where(Webhook.id == webhook_id).values(enabled=False, disabled_reason=reason))
    session.execute(
        update(Delivery)
        .where(Delivery.webhook_id == webhook_id, Delivery.state == "pending")
        .values(state="failed", next_attempt_at=None)
    )


def drop_old_secrets(session: Session, now: datetime) -> None:
    """Delete rotated secrets whose grace period is over."""
    session.execute(
        update(Webhook).where(Webhook.old_secret_until <= now).values(old_secret=None, old_secret_until=None)
    )


def drop_events(session: Session, *, before: datetime, limit: int) -> None:
    """Remove the oldest events from before a time with their deliveries, except those with pending deliveries."""
    pending = (
        select(Delivery.id)
        .join(Webhook, Webhook.id == Delivery.webhook_id)
        .where(Delivery.event_id == Event.id, Delivery.state == "pending", Webhook.enabled)
    )
    old = select(Event.id).where(Event.created_at < before, ~pending.exists()).order_by(Event.created_at).limit(limit)
    ids = session.scalars(old).all()
    session.execute(delete(Delivery).where(Delivery.event_id.in_(ids)))
    session.execute(delete(Event).where(Event.id.in_(ids)))
