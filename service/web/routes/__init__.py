"""Page routes. The path of a page is that of its JSON without `/v1`."""
