"""Text to token ids and back, as the tokenizer that comes with a model does it.

Three libraries, each imported when a file needs it: tokenizers for ``tokenizer.json``, sentencepiece for the
``tokenizer.model`` of Llama 2 and Mistral, tiktoken for that of Llama 3 and for Qwen's ``qwen.tiktoken``. Files are
parsed, nothing in them is executed.

A prompt becomes what ``AutoTokenizer.from_pretrained(folder)(text)`` of transformers 5.17 makes of it, but for two
things: no end-of-text token is ever put behind it, and a text for Llama 2 that starts with a space gets another one in
front of it, as Llama 2's own files say (transformers' LlamaTokenizer leaves that out). Errors: `TokenizerError`.
"""

import base64
import json
import math
import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import import_module
from itertools import groupby, takewhile
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from gptbench.base import inputs
from gptbench.base.errors import FileError, InputError

NAMES = ("tokenizer.json", "tokenizer.model", "*.tiktoken")
"""What is looked for in a folder, in this order."""

OTHER_NAMES = (
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tekken.json",
    "*.spm",
    "*spiece*.model",
    "tokenizer_config.json",
)
"""Files of tokenizers that are not read: where they are, there is a tokenizer all the same."""

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

RANK_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n")
"""How a file of tiktoken begins: a token in base64 and its rank. A protobuf begins with the byte 10, an empty line."""


class TokenizerError(FileError):
    """A tokenizer that is not there, cannot be read, or cannot encode a text."""


class Tokenizer(ABC):
    """Text to token ids and back. Special tokens in a text are recognised, as in transformers: ``</s>`` is one token.

    Attributes:
        kind: the library behind it, ``tokenizers``, ``sentencepiece`` or ``tiktoken``.
        source: the file it was read from.
        size: largest token id + 1, added tokens included. A model's vocabulary can be larger: it is often padded.
        bos: the token that `encode` puts first, or None where it puts none.
        eos: tokens that end a text, none where no file names one.
        rows: of the model's embedding, where it is known: `encode` refuses a text whose tokens have none.
    """

    kind: ClassVar[str]

    def __init__(self, source: Path, size: int, bos: int | None, eos: frozenset[int]) -> None:
        self.source, self.size, self.bos, self.eos = source, size, bos, eos
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
        ids = self.ids(text)
        largest = max(ids, default=0)
        if self.rows is not None and largest >= self.rows:
            raise TokenizerError(
                f"{self.source}: token {largest} ({self.decode([largest])}) of the text has no row in the embedding, "
                f"which has vocab_size={self.rows}: the tokenizer, of {self.size} tokens, is another model's, or was "
                "added to; model.tokenizer can name another one"
            )
        return ids

    @abstractmethod
    def ids(self, text: str) -> list[int]:
        """`encode` of a text that is Unicode."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """The text of any ids: with special tokens, `unused` for ids without a token, U+FFFD for what is not UTF-8.

        A tokenizer that puts a space before a text (Llama 2) drops one at its start. For tokens that follow others take
        `continuation`.
        """

    def continuation(self, prompt: Sequence[int], new: Sequence[int]) -> str:
        """What `new` tokens add to the text of `prompt`, their leading space included.

        A character whose first bytes end the prompt and whose last bytes start `new` is in it, as a whole.
        """
        before, text = self.decode(prompt), self.decode([*prompt, *new])
        # Not text[len(before):], as `before` ends in U+FFFD where the prompt ends within a character.
        same = takewhile(lambda pair: pair[0] == pair[1], zip(before, text, strict=False))
        return text[sum(1 for _ in same) :]


def unused(token: int) -> str:
    """Stands for an id that no token has."""
    return f"<|unused {token}|>"


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a Hugging Face folder, or in one file; see `NAMES`.

    JSON files beside it (``tokenizer_config.json``, ``special_tokens_map.json``, ``generation_config.json``,
    ``config.json``) may name begin and end of text. Raises TokenizerError.
    """
    file = tokenizer_file(path)
    data = contents(file)
    if file.suffix == ".json" or data.startswith(b"{"):
        return HuggingFaceTokenizer(file, data)
    if RANK_LINE.match(data):
        return TiktokenTokenizer(file, data)
    return SentencePieceTokenizer(file, data)


class HuggingFaceTokenizer(Tokenizer):
    """A ``tokenizer.json``, and the tokens that the files beside it add (see `tokens_beside`).

    Its post-processor alone says whether a begin-of-text token is put first: transformers, too, passes over the
    ``add_bos_token`` of ``tokenizer_config.json`` then (``PreTrainedTokenizerBase._from_pretrained``).
    """

    kind = "tokenizers"

    def __init__(self, file: Path, data: bytes) -> None:
        library = imported("tokenizers", file)
        with library_errors(f"cannot read {file}"):
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
            size = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        bos = self.prefix[0] if self.prefix else None
        super().__init__(file, size, bos, ends_of_text(file.parent, self.tokenizer.token_to_id))

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

    def ids(self, text: str) -> list[int]:
        with library_errors(f"{self.source} cannot encode the text"):  # a model without an unknown token, say
            return [*self.prefix, *self.tokenizer.encode(text, add_special_tokens=False).ids]

    def decode(self, ids: Sequence[int]) -> str:
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


class SentencePieceTokenizer(Tokenizer):
    """A ``tokenizer.model`` of sentencepiece: Llama 2, Mistral.

    A begin-of-text token is put first unless ``add_bos_token`` in ``tokenizer_config.json`` is false. The space that
    the model wants before a text is put at its start; behind a special token only where ``legacy`` is true there.
    """

    kind = "sentencepiece"

    def __init__(self, file: Path, data: bytes) -> None:
        library = imported("sentencepiece", file)
        self.model, self.spaceless = library.SentencePieceProcessor(), library.SentencePieceProcessor()
        try:
            self.model.LoadFromSerializedProto(data)
            # Fields that come later in a protobuf win: normalizer_spec.add_dummy_prefix = false.
            self.spaceless.LoadFromSerializedProto(data + b"\x1a\x02\x18\x00")
            pieces = [self.model.id_to_piece(index) for index in range(self.model.get_piece_size())]
        except (RuntimeError, UnicodeDecodeError) as error:
            raise unreadable(file, error) from None
        self.pieces = len(pieces)
        self.special = {
            piece: index
            for index, piece in enumerate(pieces)
            if self.model.is_control(index) or self.model.is_unknown(index)
        } | added_tokens(file.parent)
        eos = frozenset([self.model.eos_id()] if self.model.eos_id() >= 0 else [])
        eos = ends_of_text(file.parent, self.special.get, eos)
        for token in tokens_beside(file.parent)[1]:
            if (
                token["content"] and token["content"] not in self.special
            ):  # as transformers: a piece, or behind all others
                last = max(self.pieces - 1, *self.special.values())
                known = pieces.index(token["content"]) if token["content"] in pieces else last + 1
                self.special[token["content"]] = known
        self.shown = {index: token for token, index in self.special.items()}
        longest_first = sorted(self.special, key=len, reverse=True)
        self.at_special = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

        settings = read_json(file.parent / "tokenizer_config.json")
        self.behind_special = self.model if settings.get("legacy") else self.spaceless
        bos = self.special.get(token_named("bos_token", file.parent) or "", self.model.bos_id())
        adds_bos = bos >= 0 and settings.get("add_bos_token", True)
        size = max(self.pieces, *(index + 1 for index in self.special.values()))
        super().__init__(file, size, bos if adds_bos else None, eos)

    def ids(self, text: str) -> list[int]:
        start, *others = self.at_special.split(text)
        ids = [*([] if self.bos is None else [self.bos]), *self.model.encode(start)]
        for part in others:
            ids += [self.special[part]] if part in self.special else self.behind_special.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        text = ""
        model = self.model
        for ordinary, group in groupby(ids, lambda index: 0 <= index < self.pieces and index not in self.shown):
            run = list(group)
            text += model.decode(run) if ordinary else "".join(self.shown.get(index) or unused(index) for index in run)
            if run != [self.bos]:
                model = self.spaceless  # no space is dropped but the one at the start
        return text


@dataclass(frozen=True)
class Ranks:
    """What a file of tiktoken does not say of itself: its number of ranks tells which one it is."""

    name: str
    digits: str
    """How many digits a token may hold, as part of the pattern."""
    special: tuple[str, ...]
    """Special tokens; their ids follow the ranks."""
    bos: str | None
    eos: tuple[str, ...]
    nfc: bool
    """Whether a text is brought into Unicode's normal form C."""

    @property
    def pattern(self) -> str:
        """What a text is split by."""
        return (
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
            rf"|{self.digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        )


KNOWN_RANKS = {
    # https://github.com/meta-llama/llama-models/blob/main/models/llama3/tokenizer.py: Llama 3.1 and later. In 3.0 the
    # file is the same, and some special tokens that it did not use have other names.
    128000: Ranks(
        name="Llama 3",
        digits=r"\p{N}{1,3}",
        special=(
            *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
            *("<|finetune_right_pad_id|>", "<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>"),
            *("<|eot_id|>", "<|python_tag|>", "<|image|>"),
            *(f"<|reserved_special_token_{index}|>" for index in range(2, 246)),
        ),
        bos="<|begin_of_text|>",
        eos=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
        nfc=False,
    ),
    # https://huggingface.co/Qwen/Qwen-7B/blob/main/tokenization_qwen.py
    151643: Ranks(
        name="Qwen",
        digits=r"\p{N}",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{index}|>" for index in range(205))),
        bos=None,
        eos=("<|endoftext|>",),
        nfc=True,
    ),
}
"""By the number of ranks in the file."""


class TiktokenTokenizer(Tokenizer):
    """A file of lines ``token in base64, rank``: Llama 3's ``tokenizer.model``, Qwen's ``qwen.tiktoken``."""

    kind = "tiktoken"

    def __init__(self, file: Path, data: bytes) -> None:
        library = imported("tiktoken", file)
        # Not tiktoken's own loader: that gives back what it cached when it last saw a file of this name.
        try:
            lines = (line.split() for line in data.splitlines())
            ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in lines}
        except ValueError as error:
            raise unreadable(file, error) from None
        if len(ranks) not in KNOWN_RANKS:
            known = " or ".join(f"{count} ({ranks.name})" for count, ranks in KNOWN_RANKS.items())
            raise TokenizerError(f"{file} holds {len(ranks)} tokens; how it splits a text is known for {known} only")
        whole = sorted(ranks.values()) == list(range(len(ranks)))
        if not whole or not all(bytes([byte]) in ranks for byte in range(256)):
            raise unreadable(file, "ranks or bytes are missing")

        about = KNOWN_RANKS[len(ranks)]
        special = {token: len(ranks) + index for index, token in enumerate(about.special)}
        self.nfc = about.nfc
        self.encoding = library.Encoding(
            name=about.name, pat_str=about.pattern, mergeable_ranks=ranks, special_tokens=special
        )
        bos = None if about.bos is None else special[about.bos]
        eos = ends_of_text(file.parent, special.get, frozenset(special[token] for token in about.eos))
        super().__init__(file, self.encoding.n_vocab, bos, eos)

    def ids(self, text: str) -> list[int]:
        if self.nfc:
            text = unicodedata.normalize("NFC", text)
        try:
            ids = self.encoding.encode(text, allowed_special="all")
        except ValueError as error:  # a million spaces
            raise TokenizerError(f"{self.source} cannot encode the text: {one_line(error)}") from None
        return ids if self.bos is None else [self.bos, *ids]

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(map(self.token, ids)).decode(errors="replace")

    def token(self, index: int) -> bytes:
        """The bytes of a token."""
        return self.encoding.decode_single_token_bytes(index) if 0 <= index < self.size else unused(index).encode()


def entries(folder: Path, names: Sequence[str]) -> list[Path]:
    """What a folder holds of some names, in their order; whatever it is, also a link to nothing."""
    held = sorted(folder.iterdir()) if folder.is_dir() else []
    return [entry for name in names for entry in held if fnmatch(entry.name, name)]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds any of `NAMES`."""
    return bool(entries(folder, NAMES))


def unread_tokenizer(folder: Path) -> str | None:
    """What to do about a folder that has a tokenizer, but none that is read; None where it has none."""
    found = ", ".join(file.name for file in entries(folder, OTHER_NAMES))
    if has_tokenizer(folder) or not found:
        return None
    return (
        f"its tokenizer is in none of {', '.join(NAMES)}, which are read (found: {found}); transformers can make a "
        "tokenizer.json: AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
    )


def tokenizer_file(path: Path) -> Path:
    """The file that a folder's tokenizer is in, or the file itself. Raises TokenizerError where there is none."""
    if not os.path.lexists(path):
        raise TokenizerError(f"{path}: no such file or folder")
    if not path.is_dir():
        return path
    if found := entries(path, NAMES):
        return found[0]
    reason = unread_tokenizer(path) or f"it holds none of {', '.join(NAMES)}"
    raise TokenizerError(f"no tokenizer in {path}: {reason}")


def ends_of_text(
    folder: Path, id_of: Callable[[str], int | None], otherwise: frozenset[int] = frozenset()
) -> frozenset[int]:
    """Tokens that end a text: those of the first file that names any (the one that transformers takes), or `otherwise`.

    Raises TokenizerError where a file cannot be read.
    """
    for name in ("generation_config.json", "config.json"):
        if (ids := read_json(folder / name).get("eos_token_id")) is not None:
            ids = ids if isinstance(ids, list) else [ids]
            if not all(isinstance(token, int) for token in ids):
                raise unreadable(folder / name, "eos_token_id is neither a token id nor a list of them")
            return frozenset(ids)
    token = id_of(token_named("eos_token", folder) or "")
    return otherwise if token is None else frozenset([token])


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


def added_tokens(folder: Path) -> dict[str, int]:
    """Tokens that were added to a sentencepiece model, whose own file they are not in: token to id."""
    decoder = settings_of(folder).get("added_tokens_decoder", {})
    added = read_json(folder / "added_tokens.json")
    try:
        return {token["content"]: int(index) for index, token in decoder.items()} | {
            token: int(index) for token, index in added.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unreadable(folder, f"its added tokens are not token and id: {error!r}") from None


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


def contents(file: Path) -> bytes:
    """All of a file. Raises TokenizerError."""
    try:
        return inputs.read_bytes(file, MAX_BYTES)
    except InputError as error:
        raise TokenizerError(error) from None


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Turns whatever a library raises into a TokenizerError: it has nothing narrower, and lets Rust's panics out."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, TokenizerError):
        raise
    except BaseException as error:
        raise TokenizerError(f"{what}: {one_line(error)}") from None


def imported(name: str, file: Path) -> ModuleType:
    """A library that not everyone needs. Raises TokenizerError where it is not installed."""
    try:
        return import_module(name)
    except ImportError:
        raise TokenizerError(f"{file} needs the package {name}: pip install {name}") from None


def unreadable(file: Path, reason: object) -> TokenizerError:
    return TokenizerError(f"cannot read {file}: {one_line(reason)}")


def one_line(reason: object) -> str:
    return " ".join(str(reason).split())
