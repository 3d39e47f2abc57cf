"""The synchronous client. `make docs` generates it from service/client/aio."""
