"""Calls about webhooks, alerts, API keys, and the service itself."""

from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from typing import cast

from featurewatch.service.client import types
from featurewatch.service.client.aio.transport import AsyncTransport
from featurewatch.service.client.wire import given, path_of


class AsyncNotifyCalls(AsyncTransport):
    """One method for each call."""

    # Webhooks

    def webhooks(self) -> AsyncIterator[types.Webhook]:
        """All webhooks."""
        return self.pages(path_of("webhooks"))

    async def create_webhook(
        self, url: str, *, event_types: Sequence[str] = (), format: str | None = None, secret: str | None = None
    ) -> types.WebhookCreated:
        """Register a webhook; without event types it gets all. Keep `secret` of the answer: it is not shown again.

        `format` is standard, the default, or slack.
        """
        body = given(url=url, format=format, secret=secret) | {"event_types": list(event_types)}
        return cast(types.WebhookCreated, await self.json("POST", path_of("webhooks"), body=body))

    async def webhook(self, webhook: str) -> types.Webhook:
        """One webhook."""
        return cast(types.Webhook, await self.json("GET", path_of("webhooks", webhook)))

    async def update_webhook(
        self,
        webhook: str,
        *,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
        format: str | None = None,
        enabled: bool | None = None,
    ) -> types.Webhook:
        """Change a webhook. What is left out stays."""
        body = given(url=url, format=format, enabled=enabled)
        if event_types is not None:
            body["event_types"] = list(event_types)
        return cast(types.Webhook, await self.json("PATCH", path_of("webhooks", webhook), body=body))

    async def delete_webhook(self, webhook: str) -> None:
        """Remove a webhook with its deliveries."""
        await self.send("DELETE", path_of("webhooks", webhook))

    async def rotate_secret(
        self, webhook: str, *, secret: str | None = None, hours: float | None = None
    ) -> types.WebhookCreated:
        """Change the secret; the one before signs beside it for so long. Keep `secret`: it is not shown again."""
        body = given(secret=secret, hours=hours)
        made = await self.json("POST", path_of("webhooks", webhook, "rotate"), body=body)
        return cast(types.WebhookCreated, made)

    async def test_webhook(self, webhook: str) -> types.Delivery:
        """Send a test event."""
        return cast(types.Delivery, await self.json("POST", path_of("webhooks", webhook, "test")))

    def deliveries(self, webhook: str, *, state: str | None = None) -> AsyncIterator[types.Delivery]:
        """Deliveries of a webhook, newest first."""
        return self.pages(path_of("webhooks", webhook, "deliveries"), given(state=state))

    async def delivery(self, webhook: str, delivery: str) -> types.Delivery:
        """One delivery, with each attempt at it."""
        return cast(types.Delivery, await self.json("GET", path_of("webhooks", webhook, "deliveries", delivery)))

    async def redeliver(self, webhook: str, delivery: str) -> types.Delivery:
        """Send a delivery once more, with the same `webhook-id`."""
        path = path_of("webhooks", webhook, "deliveries", delivery, "redeliver")
        return cast(types.Delivery, await self.json("POST", path))

    # Alerts

    def alert_rules(self, *, family: str | None = None) -> AsyncIterator[types.AlertRule]:
        """All alert rules; only those that hold for a family, where given."""
        return self.pages(path_of("alert-rules"), given(family=family))

    async def alert_rule(self, rule: str) -> types.AlertRule:
        """One alert rule."""
        return cast(types.AlertRule, await self.json("GET", path_of("alert-rules", rule)))

    async def update_alert_rule(
        self,
        rule: str,
        *,
        name: str | None = None,
        condition: types.Condition | types.Untyped | None = None,
        enabled: bool | None = None,
    ) -> types.AlertRule:
        """Change a rule. What is left out stays."""
        body = given(name=name, condition=condition, enabled=enabled)
        return cast(types.AlertRule, await self.json("PATCH", path_of("alert-rules", rule), body=body))

    async def create_alert_rule(
        self,
        name: str,
        condition: types.Condition | types.Untyped,
        *,
        family: str | None = None,
        enabled: bool | None = None,
    ) -> types.AlertRule:
        """Make a rule, for one family or for all, e.g. with the condition `{"kind": "watched"}`."""
        body = given(name=name, condition=condition, family=family, enabled=enabled)
        return cast(types.AlertRule, await self.json("POST", path_of("alert-rules"), body=body))

    async def delete_alert_rule(self, rule: str) -> None:
        """Remove a rule with its alerts."""
        await self.send("DELETE", path_of("alert-rules", rule))

    def alerts(
        self,
        *,
        family: str | None = None,
        checkpoint: str | None = None,
        rule: str | None = None,
        state: str | None = None,
        kind: str | None = None,
    ) -> AsyncIterator[types.Alert]:
        """Alerts, newest first."""
        params = given(family=family, checkpoint=checkpoint, rule=rule, state=state, kind=kind)
        return self.pages(path_of("alerts"), params)

    async def alert(self, alert: str) -> types.Alert:
        """One alert."""
        return cast(types.Alert, await self.json("GET", path_of("alerts", alert)))

    async def acknowledge(self, alert: str) -> types.Alert:
        """Say that somebody has seen an alert."""
        return cast(types.Alert, await self.json("POST", path_of("alerts", alert, "ack")))

    async def mute(self, alert: str, *, hours: float | None = None, until: datetime | None = None) -> types.Alert:
        """Keep quiet about an alert, and new ones of its rule and family: for so long, `until` a time with its zone,
        or, with neither, until it is resolved."""
        body = given(hours=hours, until=until and until.isoformat())
        return cast(types.Alert, await self.json("POST", path_of("alerts", alert, "mute"), body=body))

    async def reopen(self, alert: str) -> types.Alert:
        """Take back that somebody has seen an alert, or a mute."""
        return cast(types.Alert, await self.json("POST", path_of("alerts", alert, "reopen")))

    async def resolve(self, alert: str) -> types.Alert:
        """Say that an alert is over."""
        return cast(types.Alert, await self.json("POST", path_of("alerts", alert, "resolve")))

    # Keys, and what was done with them

    def keys(self) -> AsyncIterator[types.Key]:
        """All API keys, without their secrets."""
        return self.pages(path_of("keys"))

    async def key(self, key: str) -> types.Key:
        """One API key, without its secret."""
        return cast(types.Key, await self.json("GET", path_of("keys", key)))

    async def create_key(self, name: str, scopes: Sequence[str], *, expires_at: datetime | None = None) -> types.NewKey:
        """Make an API key. Keep `key` of the answer: it is not shown again."""
        body = {"name": name, "scopes": list(scopes), "expires_at": expires_at and expires_at.isoformat()}
        return cast(types.NewKey, await self.json("POST", path_of("keys"), body=body))

    async def revoke_key(self, key: str) -> None:
        """End an API key."""
        await self.send("DELETE", path_of("keys", key))

    def audit(self, *, actor: str | None = None) -> AsyncIterator[types.AuditEntry]:
        """Writes that were carried out, newest first; `actor` is the id of a key."""
        return self.pages(path_of("audit"), given(actor=actor))

    # The service itself

    async def health(self) -> types.Health:
        """Whether the API's process answers."""
        return cast(types.Health, await self.json("GET", "/healthz"))

    async def readiness(self) -> types.Readiness:
        """Whether the service can work: database, schema. ApiError with status 503 where it cannot."""
        return cast(types.Readiness, await self.json("GET", "/readyz"))
