"""Routes of the pages. A page's address is that of its JSON without `/v1`."""
