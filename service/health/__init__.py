"""`/healthz`, `/readyz` and `/metrics`."""
