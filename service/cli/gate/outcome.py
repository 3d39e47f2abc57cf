"""How a checkpoint stands to one rule of a gate."""

from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """How a checkpoint stands to one rule of a gate."""

    rule: str
    """Its place in the policy file, e.g. `counts.absent`."""
    asked: str
    """The rule as a sentence."""
    failure: str = ""
    """What broke it; empty: it passed."""
    evidence: tuple[str, ...] = ()
    """A sentence for each feature that broke it: how much changed, how sure that is."""

    @property
    def passed(self) -> bool:
        """Whether the checkpoint keeps it."""
        return not self.failure

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"rule": self.rule, "asked": self.asked, "passed": self.passed, "failure": self.failure or None,
                "evidence": list(self.evidence)}  # fmt: skip
