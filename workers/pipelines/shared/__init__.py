"""What stages share: the run's inputs, activations, files and identities."""
