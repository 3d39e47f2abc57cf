"""Labels from an OpenAI-compatible endpoint: what it is shown, what it is asked, and how well its label fits."""
