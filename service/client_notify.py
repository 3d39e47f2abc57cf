"""The client's calls about webhooks, alerts and API keys."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, cast

from service.client_transport import Transport, given, path_of
from service.client_types import Alert, AlertRule, Delivery, Key, Webhook


class NotifyingCalls(Transport):
    """One method for each call."""

    # Webhooks

    def webhooks(self) -> Iterator[Webhook]:
        """All webhooks."""
        return self.pages("/v1/webhooks")

    def create_webhook(
        self, url: str, *, event_types: Sequence[str] = (), format: str | None = None, secret: str | None = None
    ) -> Webhook:
        """Register a webhook; without event types it gets all. Keep `secret` of the answer: it is not shown again.

        `format` is standard, the default, or slack.
        """
        body = given(url=url, format=format, secret=secret) | {"event_types": list(event_types)}
        return cast(Webhook, self.json("POST", path_of("webhooks"), body=body))

    def update_webhook(self, webhook: str, **changes: Any) -> Webhook:
        """Change `url`, `event_types`, `format` or `enabled`."""
        return cast(Webhook, self.json("PATCH", path_of("webhooks", webhook), body=changes))

    def delete_webhook(self, webhook: str) -> None:
        """Remove a webhook with its deliveries."""
        self.send("DELETE", path_of("webhooks", webhook))

    def rotate_secret(self, webhook: str, *, hours: float | None = None) -> Webhook:
        """Change the secret; the one before signs beside it for so long. Keep `secret`: it is not shown again."""
        return cast(Webhook, self.json("POST", path_of("webhooks", webhook, "rotate"), body=given(hours=hours)))

    def test_webhook(self, webhook: str) -> Delivery:
        """Send a test event."""
        return cast(Delivery, self.json("POST", path_of("webhooks", webhook, "test")))

    def deliveries(self, webhook: str) -> Iterator[Delivery]:
        """Deliveries of a webhook, newest first."""
        return self.pages(path_of("webhooks", webhook, "deliveries"))

    def redeliver(self, webhook: str, delivery: str) -> Delivery:
        """Send a delivery once more, with the same `webhook-id`."""
        return cast(Delivery, self.json("POST", path_of("webhooks", webhook, "deliveries", delivery, "redeliver")))

    # Alerts

    def alert_rules(self) -> Iterator[AlertRule]:
        """All alert rules."""
        return self.pages("/v1/alert-rules")

    def create_alert_rule(self, name: str, condition: Mapping[str, Any], *, family: str | None = None) -> AlertRule:
        """Make a rule, for one family or for all, e.g. with the condition `{"kind": "watched"}`."""
        body = given(name=name, condition=dict(condition), family=family)
        return cast(AlertRule, self.json("POST", path_of("alert-rules"), body=body))

    def delete_alert_rule(self, rule: str) -> None:
        """Remove a rule with its alerts."""
        self.send("DELETE", path_of("alert-rules", rule))

    def alerts(
        self,
        *,
        family: str | None = None,
        checkpoint: str | None = None,
        state: str | None = None,
        kind: str | None = None,
    ) -> Iterator[Alert]:
        """Alerts, newest first."""
        return self.pages("/v1/alerts", given(family=family, checkpoint=checkpoint, state=state, kind=kind))

    def acknowledge(self, alert: str) -> Alert:
        """Say that somebody has seen an alert."""
        return cast(Alert, self.json("POST", path_of("alerts", alert, "ack")))

    def mute(self, alert: str, *, hours: float | None = None) -> Alert:
        """Keep quiet about an alert, and new ones of its rule and family, for so long or until it is resolved."""
        return cast(Alert, self.json("POST", path_of("alerts", alert, "mute"), body=given(hours=hours)))

    def resolve(self, alert: str) -> Alert:
        """Say that an alert is over."""
        return cast(Alert, self.json("POST", path_of("alerts", alert, "resolve")))

    # Keys, and what was done with them

    def keys(self) -> Iterator[Key]:
        """All API keys, without their secrets."""
        return self.pages("/v1/keys")

    def create_key(self, name: str, scopes: Sequence[str], *, expires_at: datetime | None = None) -> Key:
        """Make an API key. Keep `key` of the answer: it is not shown again."""
        body = {"name": name, "scopes": list(scopes), "expires_at": expires_at and expires_at.isoformat()}
        return cast(Key, self.json("POST", path_of("keys"), body=body))

    def revoke_key(self, key: str) -> None:
        """End an API key."""
        self.send("DELETE", path_of("keys", key))

    def audit(self, *, actor: str | None = None) -> Iterator[dict[str, Any]]:
        """Writes that were carried out, newest first; `actor` is the id of a key."""
        return self.pages(path_of("audit"), given(actor=actor))
