"""The kinds of run: each module is one pipeline, from its first stage to the transaction that ends the run."""
