"""Predictions of a text as they are recorded."""

from dataclasses import dataclass, field


@dataclass
class Predictions:
    """Predictions of the tokens of a text, in the order of the text."""

    text: str | None
    """File of the text; None if the model has no tokenizer and predicted random tokens."""
    text_sha256: str | None
    """SHA-256 of the text."""
    scored_bytes: int | None
    """Length in UTF-8 bytes of the part of the text that was predicted."""
    context: list[int]
    """Number of tokens before the first and before the last predicted token of a window; each window starts with an
    empty context."""
    nll: list[float]
    """Negative log-likelihood of each token of the text in nats."""
    reference_nll: list[float] = field(default_factory=list)
    """Negative log-likelihood of each token under the reference in nats; empty without a reference."""
    kl: list[float] = field(default_factory=list)
    """Kullback-Leibler divergence of the engine's distribution from the reference's at each token, in nats."""
    same_top: list[bool] = field(default_factory=list)
    """Whether engine and reference prefer the same token, at each token."""
