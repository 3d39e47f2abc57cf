"""The client, made from service/client/aio: `make docs`."""
