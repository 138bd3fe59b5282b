"""Predictions of a text as they are recorded."""

from dataclasses import dataclass, field


@dataclass
class Predictions:
    """What came of predicting a text, token by token in its order."""

    text: str | None
    """File of the text; None where the model has no tokenizer, and predicted random tokens."""
    text_sha256: str | None
    scored_bytes: int | None
    """Length in UTF-8 of the part of the text that was predicted."""
    context: list[int]
    """Tokens before the first and before the last predicted one of a window; the next window starts anew."""
    nll: list[float]
    """Negative log-likelihood of each token of the text, in nats."""
    reference_nll: list[float] = field(default_factory=list)
    """The same for the reference; empty where there was none."""
    kl: list[float] = field(default_factory=list)
    """Kullback-Leibler divergence of the engine's distribution from the reference's, in nats, at each token."""
    same_top: list[bool] = field(default_factory=list)
    """Whether both prefer the same token."""
