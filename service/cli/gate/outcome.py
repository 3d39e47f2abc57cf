"""The result of one gate rule."""

from typing import Any, NamedTuple


class Outcome(NamedTuple):
    """The result of one gate rule."""

    rule: str
    """The rule's key in the policy file, e.g. `counts.absent`."""
    asked: str
    """The rule as a sentence."""
    failure: str = ""
    """Why the rule failed; empty if it passed."""
    evidence: tuple[str, ...] = ()
    """A sentence for each feature that broke the rule: how much it changed, and how certain that is."""

    @property
    def passed(self) -> bool:
        """Whether the rule passed."""
        return not self.failure

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {"rule": self.rule, "asked": self.asked, "passed": self.passed, "failure": self.failure or None,
                "evidence": list(self.evidence)}  # fmt: skip
