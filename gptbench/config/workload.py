"""The `workload` group: the prompt, the length of the generation, and how often it is repeated."""

from dataclasses import dataclass, field
from typing import ClassVar

from omegaconf import MISSING

from gptbench.base.errors import ConfigError
from gptbench.config.section import Section
from gptbench.config.sizes import (
    MAX_BATCH,
    MAX_RECORD_BYTES,
    MAX_SAMPLES,
    MAX_TOKENS,
    MIN_NEW_TOKENS,
    STEP_BYTES,
    TOKEN_BYTES,
)


@dataclass(kw_only=True)
class WorkloadConfig(Section):
    """The prompt, the number of tokens to generate, and the number of timed repetitions.

    At most one of `prompt`, `prompts`, `prompt_text` and `prompt_file` sets the prompt. Without any it is gpt_fast's,
    "Hello, my name is", in the model's tokens. The sequences of a batch get different prompts of the same length, of
    which the first is this one: consecutive windows of a text, or random tokens (see `gptbench.text.prompt`). With only
    `prompt`, or a text without `prompt_length`, all sequences get the same prompt.
    """

    GROUP: ClassVar[str] = "workload"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.generate.Workload",)

    prompt: list[int] = field(default_factory=list)
    """Token ids of the prompt, the same for every sequence of the batch."""
    prompts: list[list[int]] = field(default_factory=list)
    """Token ids of each sequence's prompt: `batch_size` lists of the same length; if empty, all sequences get
    `prompt`."""
    same_prompt: bool = False
    """Whether all sequences of a batch get the first one's prompt. They then route to the same experts of a mixture,
    and with greedy sampling generate the same text, which is faster than what different users would see."""
    prompt_text: str | None = None
    """Text of the prompt; needs a model with a tokenizer."""
    prompt_file: str | None = None
    """File with the text of the prompt in UTF-8; needs a model with a tokenizer."""
    prompt_length: int | None = None
    """Length of the prompt, in tokens: the first tokens of the text or file, or else of a novel that ships with
    gptbench; for a model without a tokenizer, random tokens. null uses the whole prompt."""
    new_tokens: int = MISSING
    """Number of tokens to generate for each sequence; the first comes from prefill, the others from decode steps."""
    samples: int = MISSING
    """Number of timed repetitions (samples) after the warm-up."""
    batch_size: int = 1
    """Number of sequences decoded at once (B)."""
    seed: int = 1234
    """Seed of the random number generators for random weights, random prompts and, hashed with the number of the
    sample, the sampling of tokens: runs with different seeds share no sample."""

    def check(self) -> None:
        given = [name for name in ("prompt", "prompts", "prompt_text", "prompt_file") if getattr(self, name)]
        if self.prompts:
            self.check_rows()
            if self.prompt == self.prompts[0]:  # the first row's, once they are made
                given.remove("prompt")
        if len(given) > 1:
            raise self.error(given[1], f"null beside workload.{given[0]}: only one of them can set the prompt")
        for name in ("prompt", "prompts"):
            if getattr(self, name) and self.prompt_length is not None:
                raise self.error("prompt_length", f"null beside workload.{name}, which already has a length")
        for name in ("prompt_text", "prompt_file"):
            if getattr(self, name) == "":
                raise self.error(name, "some text, or null")
        if len(self.prompt) > MAX_TOKENS:
            raise ConfigError("workload.prompt", f"{len(self.prompt)} tokens", f"at most {MAX_TOKENS}")
        self.within(1, MAX_TOKENS, "prompt_length")
        self.within(MIN_NEW_TOKENS, MAX_TOKENS, "new_tokens")
        self.within(1, MAX_SAMPLES, "samples")
        self.within(1, MAX_BATCH, "batch_size")
        sample_bytes = self.new_tokens * (STEP_BYTES + TOKEN_BYTES * self.batch_size)
        if sample_bytes > MAX_RECORD_BYTES:
            most = MAX_RECORD_BYTES // (STEP_BYTES + TOKEN_BYTES * self.batch_size)
            raise self.error("new_tokens", f"at most {most} with batch_size={self.batch_size}: each token is recorded")
        if self.samples * sample_bytes > MAX_RECORD_BYTES:
            why = f"new_tokens={self.new_tokens} and batch_size={self.batch_size}: each token is recorded"
            raise self.error("samples", f"at most {MAX_RECORD_BYTES // sample_bytes} with {why}")
        rows, most = (1 if self.same_prompt else self.batch_size), MAX_RECORD_BYTES // TOKEN_BYTES
        if rows * (self.prompt_length or 0) > most:
            raise self.error("prompt_length", f"at most {most // rows} for each of {rows} rows: each token is recorded")
        if not 0 <= self.seed < 2**31:
            raise self.error("seed", "a number from 0 to 2147483647")

    def check_rows(self) -> None:
        if len(self.prompts) != self.batch_size:
            raise ConfigError(
                "workload.prompts", f"{len(self.prompts)} prompts", f"one for each of batch_size={self.batch_size}"
            )
        if len({len(row) for row in self.prompts}) > 1 or not self.prompts[0]:
            lengths = ", ".join(str(len(row)) for row in self.prompts)
            raise ConfigError(
                "workload.prompts",
                f"prompts of {lengths} tokens",
                "prompts of the same length, of a token or more",
            )
        if self.same_prompt and any(row != self.prompts[0] for row in self.prompts):
            raise self.error("same_prompt", "false if workload.prompts differ")
