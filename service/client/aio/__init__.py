"""The asynchronous client, from which service/client/sync is made: `make docs`."""
