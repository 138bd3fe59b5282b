"""The prompt of a run: token ids, from whatever the workload says."""

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
"""The same as Llama 2's tokenizer has it, for models that have none."""
MAX_TEXT_BYTES = 16 * 2**20
"""Of a file with a text; more than any context holds."""
CHARACTERS = 16
"""For a token, of which there are far fewer in any language: so much of a long text is looked at first."""
MAX_SHOWN = 60
"""Characters of a text in a message."""
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
    """The same with the prompt as token ids in `workload.prompt`, those of a batch whose rows differ in
    `workload.prompts`, too, and nothing else that would say what they are.

    Raises:
        ConfigError: there is no such text, it is too short for its prompt_length or for a prompt for each row, or the
            prompt is too long for the model.
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
    """Token ids of each row's prompt, or of one that all rows get. Raises ConfigError."""
    work = config.workload
    if work.prompt or work.prompts:
        return work.prompts or [work.prompt]
    rows = 1 if work.same_prompt else work.batch_size
    if tokenizer is None:
        checkpoint = config.model.checkpoint
        unread = None if checkpoint is None else unread_tokenizer(Path(checkpoint))
        if unread is not None and work.prompt_length is None:  # Llama 2's token ids would be another text
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
                f"a folder or file with a tokenizer, as {what} has none, and the {config.model.vocab_size} ids of its "
                "vocabulary have no place for the default prompt's; or workload.prompt_length=6 (random ids), or ids "
                "in workload.prompt",
            )
        length = work.prompt_length or len(GPTFAST_TOKENS)
        first = [] if work.prompt_length else GPTFAST_TOKENS
        tokens = first + random_tokens(config.model.vocab_size, rows * length - len(first), work.seed)
        return [tokens[start : start + length] for start in range(0, rows * length, length)]
    given = "prompt_file" if work.prompt_file is not None else "prompt_text" if work.prompt_text is not None else None
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
    if given is not None and work.prompt_length is None and len(tokens) > context - MIN_NEW_TOKENS:
        most = context - MIN_NEW_TOKENS
        raise ConfigError(
            f"workload.{given}",
            work.prompt_file if work.prompt_text is None else shortened(work.prompt_text),
            f"at most {most} tokens, which the context of {config.model.name} has room for beside {MIN_NEW_TOKENS} new "
            f"ones: it has {len(tokens)} or more; workload.prompt_length={max(1, context - work.new_tokens)} takes "
            "its first ones",
        )
    if not tokens:
        name = given or "prompt_text"
        raise ConfigError(f"workload.{name}", getattr(work, name), f"a text that {tokenizer.source} makes tokens of")
    if work.prompt_length is None:
        if given is not None or rows == 1:  # the whole text is one prompt
            return [tokens]
        more = tokenizer.encode(read_text(HELD_OUT, "workload.batch_size"))
        return [tokens, *windows(more, tokenizer.bos, len(tokens), rows - 1)]
    if len(tokens) < work.prompt_length:
        raise ConfigError("workload.prompt_length", work.prompt_length, f"at most the {len(tokens)} tokens of its text")
    return windows(tokens, tokenizer.bos, work.prompt_length, rows)


def windows(tokens: list[int], bos: int | None, length: int, count: int) -> list[list[int]]:
    """So many prompts of one length out of a text's tokens, one after the other, or where the text is too short for
    that, evenly spread. Each begins with the begin-of-text token, where the text does.

    Raises:
        ConfigError: the text is so short that two would be the same.
    """
    begin = tokens[:1] if tokens[0] == bos else []
    text, own = tokens[len(begin) :], length - len(begin)
    room = len(text) - own
    if count > room + 1 or (count > 1 and not own):
        most = max(1, room + 1) if own else 1
        raise ConfigError(
            "workload.batch_size",
            count,
            f"at most {most}: the text has no more different prompts of {length} tokens; or workload.same_prompt=true",
        )
    step = min(own, room // max(1, count - 1))
    return [begin + text[row * step : row * step + own] for row in range(count)]


def first_tokens(tokenizer: Tokenizer, text: str, enough: int) -> list[int]:
    """All tokens of a text; where it has more than twice as many as are `enough`, some of its first ones, as encoding
    a book takes minutes."""
    begin = text[: CHARACTERS * enough]
    tokens = tokenizer.encode(begin)
    return tokens if len(begin) == len(text) or len(tokens) > 2 * enough else tokenizer.encode(text)


def shortened(text: str) -> str:
    """The beginning of a text, for a message."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def random_tokens(vocab_size: int, count: int, seed: int) -> list[int]:
    """Seeded token ids, equally likely, where there is no tokenizer to make them of text."""
    return random.Random(seed).choices(range(vocab_size), k=count)


def read_text(file: str | Path, field: str) -> str:
    """All of a file. Raises ConfigError, for the field that named it."""
    if may_be_a_process(str(file)):  # as when the guard looked, or by a link that has changed since
        raise ConfigError(field, file, "a file outside of /proc")
    try:
        text = inputs.read_text(Path(file), MAX_TEXT_BYTES)
    except InputError as error:
        raise ConfigError(field, file, f"a file with text in UTF-8 ({error})") from error
    if not text.strip():
        raise ConfigError(field, file, "a file that is not empty")
    return text
