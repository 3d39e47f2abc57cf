"""The process that supervises the work, and the child that does the work and may be killed at any time."""
