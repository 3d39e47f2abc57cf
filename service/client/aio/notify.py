"""Calls about webhooks, alerts, API keys and the service itself."""

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
        """List the webhooks."""
        return self.pages(path_of("webhooks"))

    async def create_webhook(
        self, url: str, *, event_types: Sequence[str] = (), format: str | None = None, secret: str | None = None
    ) -> types.WebhookCreated:
        """Create a webhook; without event types it gets all events. Store the returned `secret`: it is shown only once.

        format: standard (default) or slack.
        """
        body = given(url=url, format=format, secret=secret) | {"event_types": list(event_types)}
        return cast(types.WebhookCreated, await self.json("POST", path_of("webhooks"), body=body))

    async def webhook(self, webhook: str) -> types.Webhook:
        """Get a webhook."""
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
        """Change a webhook. Omitted arguments change nothing."""
        body = given(url=url, format=format, enabled=enabled)
        if event_types is not None:
            body["event_types"] = list(event_types)
        return cast(types.Webhook, await self.json("PATCH", path_of("webhooks", webhook), body=body))

    async def delete_webhook(self, webhook: str) -> None:
        """Delete a webhook with its deliveries."""
        await self.send("DELETE", path_of("webhooks", webhook))

    async def rotate_secret(
        self, webhook: str, *, secret: str | None = None, hours: float | None = None
    ) -> types.WebhookCreated:
        """Replace the secret of a webhook. The new one is shown only once; the old one also signs for `hours`."""
        body = given(secret=secret, hours=hours)
        path = path_of("webhooks", webhook, "rotate")
        return cast(types.WebhookCreated, await self.json("POST", path, body=body))

    async def test_webhook(self, webhook: str) -> types.Delivery:
        """Send a test event."""
        return cast(types.Delivery, await self.json("POST", path_of("webhooks", webhook, "test")))

    def deliveries(self, webhook: str, *, state: str | None = None) -> AsyncIterator[types.Delivery]:
        """List the deliveries to a webhook, newest first."""
        return self.pages(path_of("webhooks", webhook, "deliveries"), given(state=state))

    async def delivery(self, webhook: str, delivery: str) -> types.Delivery:
        """Get a delivery with all its attempts."""
        return cast(types.Delivery, await self.json("GET", path_of("webhooks", webhook, "deliveries", delivery)))

    async def redeliver(self, webhook: str, delivery: str) -> types.Delivery:
        """Send a delivery again, with the same `webhook-id`."""
        path = path_of("webhooks", webhook, "deliveries", delivery, "redeliver")
        return cast(types.Delivery, await self.json("POST", path))

    # Alerts

    def alert_rules(self, *, family: str | None = None) -> AsyncIterator[types.AlertRule]:
        """List the alert rules.

        family: only those that apply to it.
        """
        return self.pages(path_of("alert-rules"), given(family=family))

    async def alert_rule(self, rule: str) -> types.AlertRule:
        """Get an alert rule."""
        return cast(types.AlertRule, await self.json("GET", path_of("alert-rules", rule)))

    async def update_alert_rule(
        self,
        rule: str,
        *,
        name: str | None = None,
        condition: types.Condition | types.Untyped | None = None,
        enabled: bool | None = None,
    ) -> types.AlertRule:
        """Change an alert rule. Omitted arguments change nothing."""
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
        """Create an alert rule for one family or all, e.g. with the condition `{"kind": "watched"}`."""
        body = given(name=name, condition=condition, family=family, enabled=enabled)
        return cast(types.AlertRule, await self.json("POST", path_of("alert-rules"), body=body))

    async def delete_alert_rule(self, rule: str) -> None:
        """Delete an alert rule with its alerts."""
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
        """List alerts, newest first."""
        params = given(family=family, checkpoint=checkpoint, rule=rule, state=state, kind=kind)
        return self.pages(path_of("alerts"), params)

    async def alert(self, alert: str) -> types.Alert:
        """Get an alert."""
        return cast(types.Alert, await self.json("GET", path_of("alerts", alert)))

    async def acknowledge(self, alert: str) -> types.Alert:
        """Acknowledge an alert."""
        return cast(types.Alert, await self.json("POST", path_of("alerts", alert, "ack")))

    async def mute(self, alert: str, *, hours: float | None = None, until: datetime | None = None) -> types.Alert:
        """Mute an alert, and new ones of the same rule and family.

        It ends after `hours`, `until` a time with a time zone, or else when the alert is resolved.
        """
        body = given(hours=hours, until=until and until.isoformat())
        return cast(types.Alert, await self.json("POST", path_of("alerts", alert, "mute"), body=body))

    async def reopen(self, alert: str) -> types.Alert:
        """Reopen an acknowledged or muted alert."""
        return cast(types.Alert, await self.json("POST", path_of("alerts", alert, "reopen")))

    async def resolve(self, alert: str) -> types.Alert:
        """Resolve an alert."""
        return cast(types.Alert, await self.json("POST", path_of("alerts", alert, "resolve")))

    # Keys and the audit log

    def keys(self) -> AsyncIterator[types.Key]:
        """List the API keys, without their secrets."""
        return self.pages(path_of("keys"))

    async def key(self, key: str) -> types.Key:
        """Get an API key, without its secret."""
        return cast(types.Key, await self.json("GET", path_of("keys", key)))

    async def create_key(self, name: str, scopes: Sequence[str], *, expires_at: datetime | None = None) -> types.NewKey:
        """Create an API key. Store the returned `key`: it is shown only once."""
        body = {"name": name, "scopes": list(scopes), "expires_at": expires_at and expires_at.isoformat()}
        return cast(types.NewKey, await self.json("POST", path_of("keys"), body=body))

    async def revoke_key(self, key: str) -> None:
        """Revoke an API key."""
        await self.send("DELETE", path_of("keys", key))

    def audit(self, *, actor: str | None = None) -> AsyncIterator[types.AuditEntry]:
        """List all writes to the service, newest first. Needs a key with the admin scope.

        actor: only those with this key, by its id.
        """
        return self.pages(path_of("audit"), given(actor=actor))

    # The service itself

    async def health(self) -> types.Health:
        """Check that the API process responds."""
        return cast(types.Health, await self.json("GET", "/healthz"))

    async def readiness(self) -> types.Readiness:
        """Check that the service is ready: database and schema. ApiError with status 503 if it is not."""
        return cast(types.Readiness, await self.json("GET", "/readyz"))
