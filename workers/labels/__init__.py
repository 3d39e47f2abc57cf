"""Labels from an OpenAI-compatible endpoint: passages, prompts, requests, and scores of the labels."""
