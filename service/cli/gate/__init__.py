"""Gates: whether a checkpoint may pass, and the documents that tell a CI system so."""
