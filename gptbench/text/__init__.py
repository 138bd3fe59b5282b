"""Text: tokenizers, and prompts."""
