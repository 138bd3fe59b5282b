"""The prompt of a run: token ids, from whatever the workload says."""

import random
from dataclasses import replace
from pathlib import Path

from gptbench.config import Config, ModelConfig
from gptbench.errors import ConfigError
from gptbench.guard import may_be_a_process
from gptbench.paths import shipped_folder
from gptbench.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, unread_tokenizer

SEED_TEXT = "Hello, my name is"
SEED_TOKENS = [1, 15043, 29892, 590, 1024, 338]
"""The same as Llama 2's tokenizer has it, for models that have none."""
HELD_OUT = shipped_folder() / "demo" / "held_out.txt"
"""Text that the demo model never saw."""


def make_tokenizer(model: ModelConfig) -> Tokenizer | None:
    """The tokenizer of a model, or None where it has none: a checkpoint need not.

    Raises:
        TokenizerError: it cannot be read, or is not where `model.tokenizer` says.
    """
    if model.tokenizer is not None:
        tokenizer = load_tokenizer(Path(model.tokenizer))
    elif model.checkpoint is not None and has_tokenizer(Path(model.checkpoint)):
        tokenizer = load_tokenizer(Path(model.checkpoint))
    else:
        return None
    tokenizer.rows = model.vocab_size
    return tokenizer


def with_prompt(config: Config, tokenizer: Tokenizer | None) -> Config:
    """The same with the prompt as token ids in `workload.prompt`, and nothing else that would say what it is.

    Raises:
        ConfigError: there is no such text, it is too short for its prompt_length, or the prompt is too long for the
            model.
    """
    prompt = prompt_tokens(config, tokenizer)
    work = replace(config.workload, prompt=prompt, prompt_text=None, prompt_file=None, prompt_length=None)
    return replace(config, workload=work)


def prompt_tokens(config: Config, tokenizer: Tokenizer | None) -> list[int]:
    """Token ids of the prompt. Raises ConfigError."""
    work = config.workload
    if work.prompt:
        return work.prompt
    if tokenizer is None:
        checkpoint = config.model.checkpoint
        unread = None if checkpoint is None else unread_tokenizer(Path(checkpoint))
        if unread is not None and work.prompt_length is None:  # Llama 2's token ids would be another text
            raise ConfigError("model.tokenizer", "null", f"a folder or file, for {checkpoint}: {unread}")
        for name in ("prompt_text", "prompt_file"):
            if (value := getattr(work, name)) is not None:
                raise ConfigError(
                    f"workload.{name}", value, "null for a model without a tokenizer (model.tokenizer can name one)"
                )
        if work.prompt_length is None:
            return SEED_TOKENS
        return random_tokens(config.model.vocab_size, work.prompt_length, work.seed)
    if work.prompt_file is not None:
        text = read_text(work.prompt_file, "workload.prompt_file")
    elif work.prompt_text is not None:
        text = work.prompt_text
    elif work.prompt_length is not None:
        text = read_text(HELD_OUT, "workload.prompt_length")
    else:
        text = SEED_TEXT
    tokens = tokenizer.encode(text)
    if not tokens:
        name = "prompt_text" if work.prompt_file is None else "prompt_file"
        raise ConfigError(f"workload.{name}", getattr(work, name), f"a text that {tokenizer.source} makes tokens of")
    if work.prompt_length is None:
        return tokens
    if len(tokens) < work.prompt_length:
        raise ConfigError("workload.prompt_length", work.prompt_length, f"at most the {len(tokens)} tokens of its text")
    return tokens[: work.prompt_length]


def random_tokens(vocab_size: int, count: int, seed: int) -> list[int]:
    """Seeded token ids, equally likely, where there is no tokenizer to make them of text."""
    return random.Random(seed).choices(range(vocab_size), k=count)


def read_text(file: str | Path, field: str) -> str:
    """All of a file. Raises ConfigError, for the field that named it."""
    if may_be_a_process(str(file)):  # as when the guard looked, or by a link that has changed since
        raise ConfigError(field, file, "a file outside of /proc")
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(field, file, f"a file with text in UTF-8 ({error})") from error
    if not text.strip():
        raise ConfigError(field, file, "a file that is not empty")
    return text
