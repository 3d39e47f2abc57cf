"""Webhooks: where events are sent, and each attempt to send them."""
