"""Commands other than a run: each parses its arguments and shows its result."""
