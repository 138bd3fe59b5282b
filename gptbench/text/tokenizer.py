"""Text to token ids and back, as the ``tokenizer.json`` that comes with a model has it.

Read by the tokenizers library, which is imported when a file needs it; nothing in a file is executed. A prompt becomes
what ``AutoTokenizer.from_pretrained(folder)(text)`` of transformers 5.17 makes of it, but that no end-of-text token is
ever put behind it. Tokenizers in other files are not read: transformers can make a ``tokenizer.json`` of them
(`HOW_TO_MAKE`). Errors: `TokenizerError`.
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
"""What is looked for in a folder."""

OTHER_NAMES = (
    *("tokenizer.model", "*.tiktoken", "vocab.json", "merges.txt", "vocab.txt", "tekken.json", "*.spm"),
    *("*spiece*.model", "tokenizer_config.json"),
)
"""Files of tokenizers that are not read: where they are, there is a tokenizer all the same."""

HOW_TO_MAKE = (
    f"transformers can make a {NAME}: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) (pip install "
    "transformers sentencepiece tiktoken); or the prompt can be token ids: workload.prompt=[1,2,3]"
)
"""What to do about a tokenizer in other files."""

MAX_BYTES = 64 * 2**20
"""Of any file of a tokenizer; the largest that was seen has 33 MB, and the libraries take seconds for such a one."""

MAX_GROWTH = 2**20
"""Of a text by all that replaces in it, one after the other; Llama 2's tokenizer has 1."""

MAX_AROUND = 2**16
"""Tokens that are put before and behind a text."""

ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""Keys of special tokens in JSON files, in transformers' order."""

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
"""Keys of an added token in a JSON file, beside its content."""


class TokenizerError(FileError):
    """A tokenizer that is not there, cannot be read, or cannot encode a text."""


class Tokenizer:
    """A ``tokenizer.json``, and the tokens that the files beside it add (see `tokens_beside`).

    Special tokens in a text are recognised, as in transformers: ``</s>`` is one token. The file's post-processor alone
    says whether a begin-of-text token is put first: transformers, too, passes over the ``add_bos_token`` of
    ``tokenizer_config.json`` then (``PreTrainedTokenizerBase._from_pretrained``).

    Attributes:
        source: the file it was read from.
        size: largest token id + 1, added tokens included. A model's vocabulary can be larger: it is often padded.
        bos: the token that `encode` puts first, or None where it puts none.
        eos: tokens that end a text, none where no file names one.
        rows: of the model's embedding, where it is known: `encode` refuses a text whose tokens have none.
    """

    def __init__(self, file: Path, data: bytes) -> None:
        with library_errors(f"cannot read {file}"):
            import tokenizers as library

            self.tokenizer = library.Tokenizer.from_buffer(data)
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
            refuse_endless(file, self.tokenizer)
            # What stands before a word, and nothing of what stands behind it, which can be an end-of-text token. Of a
            # vocabulary that surely holds the word.
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
        """Token ids of a prompt, behind the begin-of-text token where the model is meant to see one.

        Raises TokenizerError for a text that is not Unicode (a command line can hold one), that the library refuses, or
        that has tokens which the model does not know.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text is not Unicode: {error}") from None
        with library_errors(f"{self.source} cannot encode the text"):  # a model without an unknown token, say
            ids: list[int] = [*self.prefix, *self.tokenizer.encode(text, add_special_tokens=False).ids]
        largest = max(ids, default=0)
        if self.rows is not None and largest >= self.rows:
            raise TokenizerError(
                f"{self.source}: token {largest} ({self.decode([largest])}) of the text has no row in the embedding, "
                f"which has vocab_size={self.rows}: the tokenizer, of {self.size} tokens, is another model's, or was "
                "added to; model.tokenizer can name another one"
            )
        return ids

    def continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """What `new` tokens add to the text of `prompt`, their leading space included.

        A character whose first bytes end the prompt and whose last bytes start `new` is in it, as a whole.
        """
        before, text = self.decode(prompt), self.decode([*prompt, *new])
        # Not text[len(before):], as `before` ends in U+FFFD where the prompt ends within a character.
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False))
        return text[sum(1 for _ in same) :]

    def add_tokens(self, added_token: Callable[..., Any], folder: Path) -> None:
        """Adds what the files beside name, as transformers does (``TokenizersBackend.__init__``): numbered ones by
        number, then named ones; what the vocabulary has keeps its id, and others get the next free ones."""
        with library_errors(f"cannot read {folder}: its added tokens"):
            numbered, named = tokens_beside(folder)
            own = self.tokenizer.get_added_tokens_decoder()
            if settings_of(folder).get("added_tokens_decoder") is None:
                numbered = {index: token for index, token in numbered.items() if index not in own}
            known = set(map(repr, own.values()))
            tokens = [added_token(**numbered[index]) for index in sorted(numbered)]
            tokens = [token for token in tokens if repr(token) not in known]
            contents = {token.content for token in [*own.values(), *tokens]}
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
        """The text of any ids: with special tokens, `unused` for ids without a token, U+FFFD for what is not UTF-8.

        A tokenizer that puts a space before a text (Llama 2) drops one at its start. For tokens that follow others take
        `continuation`.
        """
        tokens = [self.token(index) for index in ids]
        if getattr(self.tokenizer.model, "byte_fallback", False):
            tokens = list(with_broken_bytes_replaced(tokens))
        decoder = self.tokenizer.decoder
        try:
            with library_errors(f"{self.source} cannot decode tokens"):
                return decoder.decode(tokens) if decoder else " ".join(tokens)  # without one, as the library does it
        except TokenizerError:  # what was measured is worth more than how its text is spelled
            return " ".join(tokens)

    def token(self, index: int) -> str:
        """The token as the vocabulary spells it. The library's own `decode` leaves out an id that has none."""
        token = self.tokenizer.id_to_token(index) if 0 <= index < self.size else None
        return unused(index) if token is None else token


def unused(token: int) -> str:
    """Stands for an id that no token has."""
    return f"<|unused {token}|>"


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a Hugging Face folder, or in one file.

    JSON files beside it (``tokenizer_config.json``, ``special_tokens_map.json``, ``generation_config.json``,
    ``config.json``) may name begin and end of text. Raises TokenizerError.
    """
    file = tokenizer_file(path)
    try:
        data = inputs.read_bytes(file, MAX_BYTES)
    except InputError as error:
        raise TokenizerError(error) from None
    if file.suffix != ".json" and not data.startswith(b"{"):
        raise unreadable(file, f"it is no {NAME}; {HOW_TO_MAKE}")
    return Tokenizer(file, data)


def refuse_endless(file: Path, tokenizer: Any) -> None:
    """Raises TokenizerError for one that makes far more of a short text than any machine holds. (The library itself
    ends a regular expression that never comes to its end.)"""
    for name, part in (("normalizer", tokenizer.normalizer), ("decoder", tokenizer.decoder)):
        if part is not None and growth(json.loads(part.__getstate__())) > MAX_GROWTH:
            raise unreadable(file, f"its {name} could make a text more than {MAX_GROWTH:,} times longer")
    around = json.loads(tokenizer.post_processor.__getstate__()) if tokenizer.post_processor is not None else {}
    for template in [around, *around.get("processors", [])]:
        longest = max((len(token["ids"]) for token in template.get("special_tokens", {}).values()), default=0)
        if longest * len(template.get("single", [])) > MAX_AROUND:
            raise unreadable(file, f"its post_processor puts more than {MAX_AROUND:,} tokens around a text")


def growth(part: dict[str, Any]) -> float:
    """How many times longer a normaliser or decoder can make a text by replacing, as its JSON has it."""
    factors = [growth(each) for each in part.get("normalizers", part.get("decoders", []))]
    if part.get("type") == "Replace":  # a regular expression may match the nothing between two characters
        pattern = part["pattern"].get("String")
        factors.append(len(part["content"]) / len(pattern) if pattern else len(part["content"]) + 1)
    return math.prod(max(1, factor) for factor in factors)


def with_broken_bytes_replaced(tokens: Sequence[str]) -> Iterator[str]:
    """Tokens, with one in place of each run of bytes (``<0xE4>``) that is not UTF-8.

    The library's decoder replaces every byte of such a run, those of whole characters too, so that a new token could
    change the text of the tokens before it.
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
    """Whether a folder holds a tokenizer that is read; whatever it is, also a link to nothing."""
    return os.path.lexists(folder / NAME)


def unread_tokenizer(folder: Path) -> str | None:
    """What to do about a folder that has a tokenizer, but none that is read; None where it has none."""
    held = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    found = ", ".join(entry for name in OTHER_NAMES for entry in held if fnmatch(entry, name))
    if has_tokenizer(folder) or not found:
        return None
    return f"its tokenizer is in no {NAME}, which is what is read (found: {found}); {HOW_TO_MAKE}"


def tokenizer_file(path: Path) -> Path:
    """The file that a folder's tokenizer is in, or the file itself. Raises TokenizerError where there is none."""
    if not os.path.lexists(path):
        raise TokenizerError(f"{path}: no such file or folder")
    if not path.is_dir():
        return path
    if has_tokenizer(path):
        return path / NAME
    raise TokenizerError(f"no tokenizer in {path}: {unread_tokenizer(path) or f'it holds no {NAME}'}")


def ends_of_text(folder: Path, id_of: Callable[[str], int | None]) -> frozenset[int]:
    """Tokens that end a text: those of the first file that names any (the one that transformers takes), or none.

    Raises TokenizerError where a file cannot be read.
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
    """What ``tokenizer_config.json`` holds. Raises TokenizerError."""
    return read_json(folder / "tokenizer_config.json")


def token_named(role: str, folder: Path) -> str | None:
    """The token that a folder's files give a role (``bos_token``, ``eos_token``), or None."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_json(folder / name).get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return None


def tokens_beside(folder: Path) -> tuple[dict[int, dict[str, Any]], list[dict[str, Any]]]:
    """Tokens that the files beside a vocabulary add to it, as arguments of the library's ``AddedToken``: by id, and by
    role.

    As transformers has it (``PreTrainedTokenizerBase._from_pretrained``): where ``tokenizer_config.json`` has an
    ``added_tokens_decoder``, ``added_tokens.json`` and ``special_tokens_map.json`` are older, and are passed over.

    Raises:
        TokenizerError: a file cannot be read, or what it holds is not token and id.
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
        raise unreadable(folder, f"its added tokens are not token and id: {error!r}") from None


def argument(token: Any) -> dict[str, Any]:
    """Arguments of ``AddedToken`` for a token in a JSON file, which is its content alone, or an object with it."""
    if isinstance(token, str):
        return {"content": token}
    if not isinstance(token["content"], str):
        raise TypeError(f"{token['content']!r} is no token")
    return {key: token[key] for key in ("content", *FLAGS) if key in token}


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file. Raises TokenizerError."""
    if not os.path.lexists(file):
        return {}
    try:
        values = inputs.read_json(file, MAX_BYTES)
    except InputError as error:
        raise TokenizerError(error) from None
    if not isinstance(values, dict):
        raise unreadable(file, "it holds no JSON object")
    return values


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns whatever a library raises into a TokenizerError: it has nothing narrower, and lets Rust's panics out."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, TokenizerError):
        raise
    except BaseException as error:
        raise TokenizerError(f"{what}: {first_line(error)}") from None


def unreadable(file: Path, reason: object) -> TokenizerError:
    return TokenizerError(f"cannot read {file}: {first_line(reason)}")
