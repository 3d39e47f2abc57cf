"""Gates: decide whether a checkpoint passes, and report the result to a CI system."""
