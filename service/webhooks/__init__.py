"""Webhooks: the receivers of events, and the delivery of events to them."""
