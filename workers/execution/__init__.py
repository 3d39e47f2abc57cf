"""What a pipeline has of its run: the lease that fences its writes, its progress, and its log."""

from featurewatch.workers.execution.context import Execution

__all__ = ["Execution"]
