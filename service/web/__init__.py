"""The pages: what the API says, shown to people. Every figure comes from the API's own functions."""
