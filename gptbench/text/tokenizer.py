"""Encodes text to token ids and decodes them, with the ``tokenizer.json`` that comes with a model.

The tokenizers library reads the file and is imported only when needed; nothing in a file is executed. A prompt is
encoded as ``AutoTokenizer.from_pretrained(folder)(text)`` of transformers 5.17 does, except that no end-of-text token
is ever appended. Tokenizers in other file formats are not supported, but transformers can convert them to
``tokenizer.json`` (`HOW_TO_MAKE`). Errors are of class `TokenizerError`.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

from gptbench.base import inputs
from gptbench.base.errors import FileError, InputError, first_line

NAME = "tokenizer.json"
"""Name of the tokenizer file in a folder."""

OTHER_NAMES = (
    *("tokenizer.model", "*.tiktoken", "vocab.json", "merges.txt", "vocab.txt", "tekken.json", "*.spm"),
    *("*spiece*.model", "tokenizer_config.json"),
)
"""Files of tokenizers in unsupported formats, which show that a folder has a tokenizer nevertheless."""

HOW_TO_MAKE = (
    f"transformers can make a {NAME}: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) (pip install "
    "transformers sentencepiece tiktoken); or the prompt can be token ids: workload.prompt=[1,2,3]"
)
"""Advice for a tokenizer in an unsupported format."""

MAX_BYTES = 64 * 2**20
"""Size limit of any file of a tokenizer. The largest known one has 33 MB, which takes the libraries seconds to read."""

MAX_GROWTH = 2**20
"""Limit of the factor by which all replacements together may lengthen a text. For Llama 2's tokenizer it is 1."""

MAX_AROUND = 2**16
"""Limit of the number of tokens that a post-processor may add around a text."""

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Keys of special tokens in JSON files, in transformers' order."""

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""Keys of an added token in a JSON file, besides its content."""


class TokenizerError(FileError):
    """A tokenizer is missing, cannot be read, or cannot encode a text."""


class Tokenizer:
    """A ``tokenizer.json`` with the tokens that other files in its folder add (see `tokens_beside`).

    As in transformers, special tokens in a text are recognised: ``</s>`` is one token. Only the file's post-processor
    decides whether a begin-of-text token is prepended; like transformers
    (``PreTrainedTokenizerBase._from_pretrained``), the class ignores ``add_bos_token`` of ``tokenizer_config.json``.

    Args:
        file: path of the file.
        data: content of the file.

    Attributes:
        source: path of the file.
        size: largest token id + 1, including added tokens. A model's vocabulary is often padded and then larger.
        bos: token that `encode` prepends, or None.
        eos: tokens that end a text; empty if no file names any.
        rows: rows of the model's embedding, if known; `encode` raises an error for tokens beyond them.
    """

    def __init__(self, file: Path, data: bytes) -> None:
        with library_errors(f"cannot read {file}"):
            import tokenizers as library

            self.tokenizer = library.Tokenizer.from_buffer(data)
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
            check_growth(file, self.tokenizer)
            # Finds the tokens that the post-processor prepends to a word; those that it appends, such as end-of-text,
            # are not wanted. The vocabulary of the probe contains the word whatever that of the tokenizer does.
            probe = library.Tokenizer(library.models.WordLevel({"word": 0}, unk_token="word"))
            if self.tokenizer.post_processor is not None:
                probe.post_processor = self.tokenizer.post_processor
            encoding = probe.encode("word")
        pairs = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        self.prefix = [token for token, _ in takewhile(lambda pair: pair[1], pairs)]
        self.add_tokens(library.AddedToken, file.parent)
        with library_errors(f"cannot read {file}"):
            self.size = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.source = file
        self.bos = self.prefix[0] if self.prefix else None
        self.eos = ends_of_text(file.parent, self.tokenizer.token_to_id)
        self.rows: int | None = None

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a prompt, including the begin-of-text token if the model expects one.

        Raises:
            TokenizerError: the text is not Unicode (a command line can contain such text), the library cannot encode
                it, or it has tokens beyond the model's embedding.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text is not Unicode: {error}") from None
        with library_errors(f"{self.source} cannot encode the text"):  # for example, without an unknown token
            ids: list[int] = [*self.prefix, *self.tokenizer.encode(text, add_special_tokens=False).ids]
        largest = max(ids, default=0)
        if self.rows is not None and largest >= self.rows:
            raise TokenizerError(
                f"{self.source}: token {largest} ({self.decode([largest])}) of the text has no row in the embedding, "
                f"which has vocab_size={self.rows}: the tokenizer, of {self.size} tokens, belongs to another model or "
                "was extended; model.tokenizer can name another one"
            )
        return ids

    def continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """Return the text that `new` tokens add to that of `prompt`, including their leading space.

        A character whose first bytes end the prompt and whose last bytes start `new` is part of it.
        """
        before, text = self.decode(prompt), self.decode([*prompt, *new])
        # Not text[len(before):], because `before` ends in U+FFFD if the prompt ends within a character.
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False))
        return text[sum(1 for _ in same) :]

    def add_tokens(self, added_token: Callable[..., Any], folder: Path) -> None:
        """Add the tokens of other files in the folder, as transformers does (``TokenizersBackend.__init__``).

        Those with an id come first, in order of id, then those with a role. Tokens in the vocabulary keep their ids,
        and others get the next free ones.
        """
        with library_errors(f"cannot read {folder}: its added tokens"):
            numbered, named = tokens_beside(folder)
            present = self.tokenizer.get_added_tokens_decoder()
            if settings_of(folder).get("added_tokens_decoder") is None:
                numbered = {index: token for index, token in numbered.items() if index not in present}
            known = set(map(repr, present.values()))
            tokens = [added_token(**numbered[index]) for index in sorted(numbered)]
            tokens = [token for token in tokens if repr(token) not in known]
            contents = {token.content for token in [*present.values(), *tokens]}
            for token in named:
                if token["content"] not in contents:
                    tokens.append(added_token(**token))
                    contents.add(token["content"])
            names = {token["content"] for token in named}
            for token in tokens:
                token.special = token.special or token.content in names
            self.tokenizer.add_tokens(tokens)
            self.tokenizer.encode_special_tokens = bool(settings_of(folder).get("split_special_tokens"))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, including special tokens, with `unused` for ids without a token and U+FFFD for
        bytes that are not UTF-8.

        A tokenizer that puts a space before a text (Llama 2) drops one at its start. Use `continuation` for tokens that
        follow others.
        """
        tokens = [self.token(index) for index in ids]
        if getattr(self.tokenizer.model, "byte_fallback", False):
            tokens = list(with_broken_bytes_replaced(tokens))
        decoder = self.tokenizer.decoder
        try:
            with library_errors(f"{self.source} cannot decode tokens"):
                return decoder.decode(tokens) if decoder else " ".join(tokens)  # as the library does without a decoder
        except TokenizerError:  # a text that cannot be decoded must not lose the measurement
            return " ".join(tokens)

    def token(self, index: int) -> str:
        """Return a token as the vocabulary spells it. The library's `decode` would leave out an id without a token."""
        token = self.tokenizer.id_to_token(index) if 0 <= index < self.size else None
        return unused(index) if token is None else token


def unused(token: int) -> str:
    """Return the placeholder for an id without a token."""
    return f"<|unused {token}|>"


def load_tokenizer(path: Path) -> Tokenizer:
    """Load the tokenizer in a Hugging Face folder or in one file.

    JSON files in the same folder (``tokenizer_config.json``, ``special_tokens_map.json``, ``generation_config.json``,
    ``config.json``) may name the begin-of-text and end-of-text tokens.

    Raises:
        TokenizerError: a file is missing or cannot be read.
    """
    file = tokenizer_file(path)
    try:
        data = inputs.read_bytes(file, MAX_BYTES)
    except InputError as error:
        raise TokenizerError(error) from None
    if file.suffix != ".json" and not data.startswith(b"{"):
        raise unreadable(file, f"it is not a {NAME}; {HOW_TO_MAKE}")
    return Tokenizer(file, data)


def check_growth(file: Path, tokenizer: Any) -> None:
    """Raise TokenizerError for a tokenizer that could make a short text exceed the memory of any machine. (The library
    stops regular expressions that take too long.)"""
    for name, part in (("normalizer", tokenizer.normalizer), ("decoder", tokenizer.decoder)):
        if part is not None and growth(json.loads(part.__getstate__())) > MAX_GROWTH:
            raise unreadable(file, f"its {name} could make a text more than {MAX_GROWTH:,} times as long")
    around = json.loads(tokenizer.post_processor.__getstate__()) if tokenizer.post_processor is not None else {}
    for template in [around, *around.get("processors", [])]:
        longest = max((len(token["ids"]) for token in template.get("special_tokens", {}).values()), default=0)
        if longest * len(template.get("single", [])) > MAX_AROUND:
            raise unreadable(file, f"its post_processor adds more than {MAX_AROUND:,} tokens around a text")


def growth(part: dict[str, Any]) -> float:
    """Return the factor by which a normaliser or decoder, given as JSON, can lengthen a text by replacements."""
    factors = [growth(child) for child in part.get("normalizers", part.get("decoders", []))]
    if part.get("type") == "Replace":  # a regular expression may match the empty string between two characters
        pattern = part["pattern"].get("String")
        factors.append(len(part["content"]) / len(pattern) if pattern else len(part["content"]) + 1)
    return math.prod(max(1, factor) for factor in factors)


def with_broken_bytes_replaced(tokens: Sequence[str]) -> Iterator[str]:
    """Iterate over tokens, replacing each run of byte tokens (``<0xE4>``) that is not UTF-8 by one token.

    The library's decoder replaces every byte of such a run, even those of complete characters, so that a new token
    could change the text of the tokens before it.
    """
    for is_byte, group in groupby(tokens, lambda token: re.fullmatch("<0x[0-9A-F]{2}>", token) is not None):
        run = list(group)
        data = bytes(int(token[3:5], 16) for token in run) if is_byte else b""
        try:
            data.decode()
            yield from run
        except UnicodeDecodeError:
            yield data.decode(errors="replace")


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has an entry ``tokenizer.json``, which may even be a broken link."""
    return os.path.lexists(folder / NAME)


def unread_tokenizer(folder: Path) -> str | None:
    """Return the advice for a folder whose tokenizer is in an unsupported format; None for other folders."""
    entries = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    matches = ", ".join(entry for name in OTHER_NAMES for entry in entries if fnmatch(entry, name))
    if has_tokenizer(folder) or not matches:
        return None
    return f"its tokenizer is not in {NAME}, the only supported format (found: {matches}); {HOW_TO_MAKE}"


def tokenizer_file(path: Path) -> Path:
    """Return the file of the tokenizer in a folder, or the path itself if it is a file. Raises TokenizerError if there
    is none."""
    if not os.path.lexists(path):
        raise TokenizerError(f"{path}: no such file or folder")
    if not path.is_dir():
        return path
    if has_tokenizer(path):
        return path / NAME
    raise TokenizerError(f"no tokenizer in {path}: {unread_tokenizer(path) or f'it has no {NAME}'}")


def ends_of_text(folder: Path, id_of: Callable[[str], int | None]) -> frozenset[int]:
    """Return the tokens that end a text, from the first file that names any, as transformers does; may be empty.

    Raises:
        TokenizerError: a file cannot be read.
    """
    for name in ("generation_config.json", "config.json"):
        if (ids := read_json(folder / name).get("eos_token_id")) is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if not all(isinstance(token, int) for token in ids):
                raise unreadable(folder / name, "eos_token_id is neither a token id nor a list of them")
            return frozenset(ids)
    token = id_of(token_named("eos_token", folder) or "")
    return frozenset() if token is None else frozenset([token])


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the content of ``tokenizer_config.json``. Raises TokenizerError as `read_json` does."""
    return read_json(folder / "tokenizer_config.json")


def token_named(role: str, folder: Path) -> str | None:
    """Return the token with a role (``bos_token``, ``eos_token``) in a folder's files, or None."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_json(folder / name).get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return None


def tokens_beside(folder: Path) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """Return the tokens that other files of a folder add to the vocabulary, as arguments of ``AddedToken``: those with
    an id, by id, and those with a role.

    As in transformers (``PreTrainedTokenizerBase._from_pretrained``), if ``tokenizer_config.json`` has an
    ``added_tokens_decoder``, the older ``added_tokens.json`` and ``special_tokens_map.json`` are ignored.

    Raises:
        TokenizerError: a file cannot be read or is malformed.
    """
    settings, older = settings_of(folder), read_json(folder / "special_tokens_map.json")
    decoder = settings.get("added_tokens_decoder")
    extra = settings.get("extra_special_tokens", settings.get("additional_special_tokens"))
    if decoder is None:
        settings = settings | older
        extra = older.get("additional_special_tokens") if extra is None else extra
    try:
        extra = [*extra.values()] if isinstance(extra, dict) else [*(extra or [])]
        extra += older.get("extra_special_tokens", []) if decoder is None else []
        others = [token for key, token in settings.items() if key.endswith("_token") and key not in ROLES]
        named = [settings.get(role) for role in ROLES]
        named += [token for token in others if isinstance(token, str | dict)]
        special = [argument(token) | {"special": True} for token in [*named, *extra] if token is not None]
        if decoder is not None:
            numbered = {int(index): argument(dict(token)) for index, token in decoder.items()}
        else:
            names = {token["content"] for token in special}
            numbered = {
                int(index): {"content": token, "normalized": token not in names, "special": token in names}
                for token, index in read_json(folder / "added_tokens.json").items()
            }
        flags = {token["content"]: token for token in numbered.values()}
        return numbered, [flags.get(token["content"], token) for token in special]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unreadable(folder, f"its added tokens are malformed: {error!r}") from None


def argument(token: Any) -> dict[str, Any]:
    """Return the arguments of ``AddedToken`` for a token in a JSON file, which is a string or an object."""
    if isinstance(token, str):
        return {"content": token}
    if not isinstance(token["content"], str):
        raise TypeError(f"{token['content']!r} is not a token")
    return {key: token[key] for key in ("content", *FLAGS) if key in token}


def read_json(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one if there is no such file. Raises TokenizerError."""
    if not os.path.lexists(file):
        return {}
    try:
        values = inputs.read_json(file, MAX_BYTES)
    except InputError as error:
        raise TokenizerError(error) from None
    if not isinstance(values, dict):
        raise unreadable(file, "expected a JSON object")
    return values


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Convert whatever the library raises, which may be any class or a Rust panic, to a TokenizerError."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, TokenizerError):
        raise
    except BaseException as error:
        raise TokenizerError(f"{what}: {first_line(error)}") from None


def unreadable(file: Path, reason: object) -> TokenizerError:
    """Return the error for a file that cannot be read."""
    return TokenizerError(f"cannot read {file}: {first_line(reason)}")
