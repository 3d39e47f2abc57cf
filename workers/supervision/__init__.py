"""The process that supervises the work, and the child that does it and may be killed at any time."""
