"""The asynchronous client. `make docs` generates service/client/sync from it."""
