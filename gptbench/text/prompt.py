"""Makes the prompt of a run: token ids from the workload's ids, text, file or length."""

import random
from dataclasses import replace
from pathlib import Path

from gptbench.base import inputs
from gptbench.base.errors import ConfigError, InputError
from gptbench.base.paths import shipped_folder
from gptbench.config import MIN_NEW_TOKENS, Config, ModelConfig
from gptbench.config.refusal import may_be_a_process
from gptbench.text.tokenizer import Tokenizer, has_tokenizer, load_tokenizer, unread_tokenizer

GPTFAST_TEXT = "Hello, my name is"
GPTFAST_TOKENS = [1, 15043, 29892, 590, 1024, 338]
"""Token ids of `GPTFAST_TEXT` by Llama 2's tokenizer, for models without a tokenizer."""
MAX_TEXT_BYTES = 16 * 2**20
"""Size limit of a text file, which is more than any context holds."""
CHARACTERS = 16
"""Characters of a long text that are encoded first, per token that is needed. In any language a token has far fewer."""
MAX_SHOWN = 60
"""Maximum number of characters of a text that a message quotes."""
HELD_OUT = shipped_folder() / "demo" / "held_out.txt"
"""Text that the demo model was not trained on."""


def make_tokenizer(model: ModelConfig) -> Tokenizer | None:
    """Return the tokenizer of a model, or None if it has none, as a checkpoint need not have one.

    Raises:
        TokenizerError: the tokenizer cannot be read, or `model.tokenizer` does not exist.
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
    """Return the configuration with the prompt as token ids in `workload.prompt`, and also in `workload.prompts` if the
    rows of the batch differ. The other fields that describe a prompt are cleared.

    Raises:
        ConfigError: the text cannot be read or is too short for `prompt_length` or for a different prompt in each row,
            or the prompt is too long for the model.
    """
    rows = row_prompts(config, tokenizer)
    work = replace(
        config.workload,
        prompt=rows[0],
        prompts=rows if any(row != rows[0] for row in rows) else [],
        prompt_text=None,
        prompt_file=None,
        prompt_length=None,
        same_prompt=False,
    )
    return replace(config, workload=work)


def row_prompts(config: Config, tokenizer: Tokenizer | None) -> list[list[int]]:
    """Return the token ids of each row's prompt, or of the single prompt that all rows share. Raises ConfigError as
    `with_prompt` does."""
    work = config.workload
    if work.prompt or work.prompts:
        return work.prompts or [work.prompt]
    rows = 1 if work.same_prompt else work.batch_size
    if tokenizer is None:
        checkpoint = config.model.checkpoint
        unread = None if checkpoint is None else unread_tokenizer(Path(checkpoint))
        if unread is not None and work.prompt_length is None:  # Llama 2's token ids would mean another text
            raise ConfigError("model.tokenizer", "null", f"a folder or file, for {checkpoint}: {unread}")
        what = f"model={config.model.name}" if checkpoint is None else f"model.checkpoint={checkpoint}"
        for name in ("prompt_text", "prompt_file"):
            if (value := getattr(work, name)) is not None:
                expected = f"null for a model without a tokenizer: {what} has none, and model.tokenizer can name one"
                raise ConfigError(f"workload.{name}", value, expected)
        if work.prompt_length is None and max(GPTFAST_TOKENS) >= config.model.vocab_size:
            raise ConfigError(
                "model.tokenizer",
                "null",
                f"a folder or file with a tokenizer, as {what} has none, and its vocabulary of "
                f"{config.model.vocab_size} ids is too small for the default prompt's; or workload.prompt_length=6 "
                "(random ids), or ids in workload.prompt",
            )
        length = work.prompt_length or len(GPTFAST_TOKENS)
        first = [] if work.prompt_length else GPTFAST_TOKENS
        tokens = first + random_tokens(config.model.vocab_size, rows * length - len(first), work.seed)
        return [tokens[start : start + length] for start in range(0, rows * length, length)]
    field = "prompt_file" if work.prompt_file is not None else "prompt_text" if work.prompt_text is not None else None
    if work.prompt_file is not None:
        text = read_text(work.prompt_file, "workload.prompt_file")
    elif work.prompt_text is not None:
        text = work.prompt_text
    elif work.prompt_length is not None:
        text = read_text(HELD_OUT, "workload.prompt_length")
    else:
        text = GPTFAST_TEXT
    context = config.model.context
    tokens = first_tokens(tokenizer, text, rows * work.prompt_length if work.prompt_length else context)
    if field is not None and work.prompt_length is None and len(tokens) > context - MIN_NEW_TOKENS:
        maximum = context - MIN_NEW_TOKENS
        raise ConfigError(
            f"workload.{field}",
            work.prompt_file if work.prompt_text is None else shortened(work.prompt_text),
            f"at most {maximum} tokens, so that the context of {config.model.name} has room for {MIN_NEW_TOKENS} new "
            f"ones: it has {len(tokens)} or more; workload.prompt_length={max(1, context - work.new_tokens)} takes "
            "the first ones only",
        )
    if not tokens:
        name = field or "prompt_text"
        raise ConfigError(
            f"workload.{name}", getattr(work, name), f"a text that has at least one token by {tokenizer.source}"
        )
    if work.prompt_length is None:
        if field is not None or rows == 1:  # the whole text is one prompt
            return [tokens]
        more = tokenizer.encode(read_text(HELD_OUT, "workload.batch_size"))
        return [tokens, *windows(more, tokenizer.bos, len(tokens), rows - 1)]
    if len(tokens) < work.prompt_length:
        raise ConfigError("workload.prompt_length", work.prompt_length, f"at most the {len(tokens)} tokens of its text")
    return windows(tokens, tokenizer.bos, work.prompt_length, rows)


def windows(tokens: list[int], bos: int | None, length: int, count: int) -> list[list[int]]:
    """Split the tokens of a text into `count` prompts of `length` tokens, consecutive or, if the text is too short for
    that, overlapping and evenly spaced. Each begins with the begin-of-text token if the text does.

    Raises:
        ConfigError: the text is so short that two prompts would be the same.
    """
    begin = tokens[:1] if tokens[0] == bos else []
    text, width = tokens[len(begin) :], length - len(begin)
    last_start = len(text) - width
    if count > last_start + 1 or (count > 1 and not width):
        maximum = max(1, last_start + 1) if width else 1
        raise ConfigError(
            "workload.batch_size",
            count,
            f"at most {maximum}: the text has no more different prompts of {length} tokens; or "
            "workload.same_prompt=true",
        )
    step = min(width, last_start // max(1, count - 1))
    return [begin + text[row * step : row * step + width] for row in range(count)]


def first_tokens(tokenizer: Tokenizer, text: str, enough: int) -> list[int]:
    """Return all tokens of a text, or only the first ones if there are more than twice `enough`, since encoding a book
    takes minutes."""
    begin = text[: CHARACTERS * enough]
    tokens = tokenizer.encode(begin)
    return tokens if len(begin) == len(text) or len(tokens) > 2 * enough else tokenizer.encode(text)


def shortened(text: str) -> str:
    """Return the beginning of a text, for a message."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def random_tokens(vocab_size: int, count: int, seed: int) -> list[int]:
    """Return seeded, uniformly distributed token ids, for models without a tokenizer."""
    return random.Random(seed).choices(range(vocab_size), k=count)


def read_text(file: str | Path, field: str) -> str:
    """Return the text of a file. Raises ConfigError for the field that names the file."""
    if may_be_a_process(str(file)):  # checked again, as a link may have changed since the configuration was checked
        raise ConfigError(field, file, "a file outside of /proc")
    try:
        text = inputs.read_text(Path(file), MAX_TEXT_BYTES)
    except InputError as error:
        raise ConfigError(field, file, f"a file with text in UTF-8 ({error})") from error
    if not text.strip():
        raise ConfigError(field, file, "a file that is not empty")
    return text
