"""Commands for the machine that the service runs on: the service itself, keys, the database."""
