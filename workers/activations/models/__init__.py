"""Models: loading them with adapters, their hook points, and what follows the last layer."""
