"""The `sampling` group: how the next token is drawn."""

from dataclasses import dataclass, field
from typing import ClassVar

from gptbench.config.section import Section
from gptbench.config.sizes import MAX_STOP_TOKENS


@dataclass(kw_only=True)
class SamplingConfig(Section):
    """How the next token is drawn: temperature first, then top_k, then top_p of what top_k left."""

    GROUP: ClassVar[str] = "sampling"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.sampling.Sampler",)

    temperature: float = 1.0
    """The logits are divided by it; 0 takes the most likely token."""
    top_k: int | None = None
    """Only the k most likely tokens, and all whose logit equals that of the last of them; or null for all."""
    top_p: float | None = None
    """Only the smallest set of most likely tokens whose probability reaches p, or null for all."""
    stop_tokens: list[int] = field(default_factory=list)
    """Token ids that end an answer, at most 16. A row that has drawn one draws it again at every later step, so that
    there are as many steps as without; the answer is what comes before, and the stop token."""

    def check(self) -> None:
        if not 0 <= self.temperature <= 1e30:
            raise self.error("temperature", "a number from 0 (greedy) to 1e30")
        if self.top_k is not None and self.top_k < 1:
            raise self.error("top_k", "a number of at least 1, or null for the whole vocabulary")
        if self.top_p is not None and not 1e-30 <= self.top_p <= 1:  # in float32 less may be 0, and keep nothing
            raise self.error("top_p", "a number from 1e-30 to 1, or null for no limit")
        if len(self.stop_tokens) > MAX_STOP_TOKENS:
            raise self.error("stop_tokens", f"at most {MAX_STOP_TOKENS} token ids")
