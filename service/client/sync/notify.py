# Written by `make docs` from service/client/aio/notify.py.
"""Calls about webhooks, alerts, API keys and the service itself."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from featurewatch.service.client import types
from featurewatch.service.client.sync.transport import Transport


class NotifyCalls(Transport):
    """One method for each call."""

    # Webhooks

    def webhooks(self) -> Iterator[types.Webhook]:
        """List the webhooks."""
        return self._list("webhooks")

    def create_webhook(
        self, url: str, *, event_types: Sequence[str] = (), format: str | None = None, secret: str | None = None
    ) -> types.WebhookCreated:
        """Create a webhook; without event types it gets all events. Store the returned `secret`: it is shown only once.

        format: standard (default) or slack.
        """
        return self._post("webhooks", url=url, event_types=list(event_types), format=format, secret=secret)

    def webhook(self, webhook: str) -> types.Webhook:
        """Get a webhook."""
        return self._get("webhooks", webhook)

    def update_webhook(
        self,
        webhook: str,
        *,
        url: str | None = None,
        event_types: Sequence[str] | None = None,
        format: str | None = None,
        enabled: bool | None = None,
    ) -> types.Webhook:
        """Change a webhook. Omitted arguments change nothing."""
        body = {"url": url, "event_types": event_types and list(event_types), "format": format, "enabled": enabled}
        return self._patch("webhooks", webhook, **body)

    def delete_webhook(self, webhook: str) -> None:
        """Delete a webhook with its deliveries."""
        self._delete("webhooks", webhook)

    def rotate_secret(
        self, webhook: str, *, secret: str | None = None, hours: float | None = None
    ) -> types.WebhookCreated:
        """Replace the secret of a webhook. The new one is shown only once; the old one also signs for `hours`."""
        return self._post("webhooks", webhook, "rotate", secret=secret, hours=hours)

    def test_webhook(self, webhook: str) -> types.Delivery:
        """Send a test event."""
        return self._post("webhooks", webhook, "test")

    def deliveries(self, webhook: str, *, state: str | None = None) -> Iterator[types.Delivery]:
        """List the deliveries to a webhook, newest first."""
        return self._list("webhooks", webhook, "deliveries", state=state)

    def delivery(self, webhook: str, delivery: str) -> types.Delivery:
        """Get a delivery with all its attempts."""
        return self._get("webhooks", webhook, "deliveries", delivery)

    def redeliver(self, webhook: str, delivery: str) -> types.Delivery:
        """Send a delivery again, with the same `webhook-id`."""
        return self._post("webhooks", webhook, "deliveries", delivery, "redeliver")

    # Alerts

    def alert_rules(self, *, family: str | None = None) -> Iterator[types.AlertRule]:
        """List the alert rules.

        family: only those that apply to it.
        """
        return self._list("alert-rules", family=family)

    def alert_rule(self, rule: str) -> types.AlertRule:
        """Get an alert rule."""
        return self._get("alert-rules", rule)

    def update_alert_rule(
        self,
        rule: str,
        *,
        name: str | None = None,
        condition: types.Condition | types.Untyped | None = None,
        enabled: bool | None = None,
    ) -> types.AlertRule:
        """Change an alert rule. Omitted arguments change nothing."""
        return self._patch("alert-rules", rule, name=name, condition=condition, enabled=enabled)

    def create_alert_rule(
        self,
        name: str,
        condition: types.Condition | types.Untyped,
        *,
        family: str | None = None,
        enabled: bool | None = None,
    ) -> types.AlertRule:
        """Create an alert rule for one family or all, e.g. with the condition `{"kind": "watched"}`."""
        return self._post("alert-rules", name=name, condition=condition, family=family, enabled=enabled)

    def delete_alert_rule(self, rule: str) -> None:
        """Delete an alert rule with its alerts."""
        self._delete("alert-rules", rule)

    def alerts(
        self,
        *,
        family: str | None = None,
        checkpoint: str | None = None,
        rule: str | None = None,
        state: str | None = None,
        kind: str | None = None,
    ) -> Iterator[types.Alert]:
        """List alerts, newest first."""
        return self._list("alerts", family=family, checkpoint=checkpoint, rule=rule, state=state, kind=kind)

    def alert(self, alert: str) -> types.Alert:
        """Get an alert."""
        return self._get("alerts", alert)

    def acknowledge(self, alert: str) -> types.Alert:
        """Acknowledge an alert."""
        return self._post("alerts", alert, "ack")

    def mute(self, alert: str, *, hours: float | None = None, until: datetime | None = None) -> types.Alert:
        """Mute an alert and any new alerts of the same rule and family.

        It ends after `hours`, `until` a time with a time zone, or else when the alert is resolved.
        """
        return self._post("alerts", alert, "mute", hours=hours, until=until and until.isoformat())

    def reopen(self, alert: str) -> types.Alert:
        """Reopen an acknowledged or muted alert."""
        return self._post("alerts", alert, "reopen")

    def resolve(self, alert: str) -> types.Alert:
        """Resolve an alert."""
        return self._post("alerts", alert, "resolve")

    # Keys and the audit log

    def keys(self) -> Iterator[types.Key]:
        """List the API keys, without their secrets."""
        return self._list("keys")

    def key(self, key: str) -> types.Key:
        """Get an API key, without its secret."""
        return self._get("keys", key)

    def create_key(self, name: str, scopes: Sequence[str], *, expires_at: datetime | None = None) -> types.NewKey:
        """Create an API key. Store the returned `key`: it is shown only once."""
        expires = expires_at and expires_at.isoformat()
        return self._post("keys", name=name, scopes=list(scopes), expires_at=expires)

    def revoke_key(self, key: str) -> None:
        """Revoke an API key."""
        self._delete("keys", key)

    def audit(self, *, actor: str | None = None) -> Iterator[types.AuditEntry]:
        """List all writes to the service, newest first. Needs a key with the admin scope.

        actor: only those with this key, by its id.
        """
        return self._list("audit", actor=actor)

    # The service itself

    def health(self) -> types.Health:
        """Check that the API process responds."""
        return self.json("GET", "/healthz")

    def readiness(self) -> types.Readiness:
        """Check that the service is ready: database and schema. ApiError with status 503 if it is not."""
        return self.json("GET", "/readyz")
