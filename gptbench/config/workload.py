"""The `workload` group: what is run, and how often."""

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
    """What is run, and how often.

    At most one of `prompt`, `prompts`, `prompt_text` and `prompt_file` says what the prompt is. Without any it is the
    seed's, "Hello, my name is", in the model's own tokens. The rows of a batch get different prompts of one length,
    the first of them that one: windows of the text, one after the other, or random tokens (see `gptbench.text.prompt`).
    Where `prompt`, or a text without `prompt_length`, is all that there is, all get the same.
    """

    GROUP: ClassVar[str] = "workload"
    TARGETS: ClassVar[tuple[str, ...]] = ("gptbench.generate.Workload",)

    prompt: list[int] = field(default_factory=list)
    """Token ids of the prompt, the same for every row."""
    prompts: list[list[int]] = field(default_factory=list)
    """Token ids of each row's prompt, one for each of `batch_size`, all of the same length; where they are empty, all
    rows get `prompt`."""
    same_prompt: bool = False
    """Whether all rows of a batch get the first one's prompt. They then choose the same experts of a mixture, and with
    greedy drawing say the same, which is quicker than what different users would see."""
    prompt_text: str | None = None
    """Text of the prompt, for a model with a tokenizer."""
    prompt_file: str | None = None
    """File with the text of the prompt, in UTF-8, for a model with a tokenizer."""
    prompt_length: int | None = None
    """Tokens of the prompt: so many of the text's or file's first ones, or of a novel's that gptbench ships; of a model
    without a tokenizer, so many seeded random ones. null is all that there are."""
    new_tokens: int = MISSING
    """Tokens generated for each row; the first comes from the prefill, the others from decode steps."""
    samples: int = MISSING
    """Timed repetitions, after the warm-up."""
    batch_size: int = 1
    """B, sequences decoded at once."""
    seed: int = 1234
    """Seeds the random weights and random prompts, and, hashed with a sample's number, the drawing of that sample's
    tokens: runs with different seeds share no sample."""

    def check(self) -> None:
        given = [name for name in ("prompt", "prompts", "prompt_text", "prompt_file") if getattr(self, name)]
        if self.prompts:
            self.check_rows()
            if self.prompt == self.prompts[0]:  # the first row's, once they are made
                given.remove("prompt")
        if len(given) > 1:
            raise self.error(given[1], f"null beside workload.{given[0]}: one of both can be the prompt")
        for name in ("prompt", "prompts"):
            if getattr(self, name) and self.prompt_length is not None:
                raise self.error("prompt_length", f"null beside workload.{name}, which has a length of its own")
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
            told = f"new_tokens={self.new_tokens} and batch_size={self.batch_size}: each token is recorded"
            raise self.error("samples", f"at most {MAX_RECORD_BYTES // sample_bytes} with {told}")
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
            raise ConfigError("workload.prompts", f"prompts of {lengths} tokens", "one length, of a token at least")
        if self.same_prompt and any(row != self.prompts[0] for row in self.prompts):
            raise self.error("same_prompt", "false beside workload.prompts that differ")
