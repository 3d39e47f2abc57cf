"""Where a checkpoint's files come from: URIs, fetching, sealed caches, and verification of what is read."""
