"""The web interface. Every number on a page comes from the same functions as in the API."""
