"""Commands beside a run: each reads its arguments, and shows what came of it."""
