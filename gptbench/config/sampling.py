"""The `sampling` group: how the next token is sampled."""

from dataclasses import dataclass, field
from typing import ClassVar

from gptbench.config.section import Section
from gptbench.config.sizes import MAX_STOP_TOKENS


@dataclass(kw_only=True)
class SamplingConfig(Section):
    """How the next token is sampled from the logits: temperature is applied first, then top_k, then top_p to the tokens
    that top_k left."""

    GROUP: ClassVar[str] = "sampling"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.sampling.Sampler",)

    temperature: float = 1.0
    """Sampling temperature, by which the logits are divided; 0 always takes the most likely token (greedy)."""
    top_k: int | None = None
    """Number of most likely tokens to sample from, together with all tokens whose logit ties with the last of them;
    null is the whole vocabulary."""
    top_p: float | None = None
    """Probability p of nucleus sampling: the next token is sampled from the smallest set of most likely tokens whose
    total probability reaches p; null is no limit."""
    stop_tokens: list[int] = field(default_factory=list)
    """Token ids that end a sequence, at most 16. A sequence that has sampled a stop token repeats it at every later
    step, so that the number of steps stays the same; the answer ends with the first stop token."""

    def check(self) -> None:
        if not 0 <= self.temperature <= 1e30:
            raise self.error("temperature", "a number from 0 (greedy) to 1e30")
        if self.top_k is not None and self.top_k < 1:
            raise self.error("top_k", "a number of at least 1, or null for the whole vocabulary")
        if self.top_p is not None and not 1e-30 <= self.top_p <= 1:  # in float32 less may be 0, and keep nothing
            raise self.error("top_p", "a number from 1e-30 to 1, or null for no limit")
        if len(self.stop_tokens) > MAX_STOP_TOKENS:
            raise self.error("stop_tokens", f"at most {MAX_STOP_TOKENS} token ids")
