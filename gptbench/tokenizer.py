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
import re
import string
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby, takewhile
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from gptbench.errors import FileError

NAMES = ("tokenizer.json", "tokenizer.model", "*.tiktoken")
"""What is looked for in a folder, in this order."""

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
    """

    kind: ClassVar[str]

    def __init__(self, source: Path, size: int, bos: int | None, eos: frozenset[int]) -> None:
        self.source, self.size, self.bos, self.eos = source, size, bos, eos

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt, behind the begin-of-text token where the model is meant to see one.

        Raises TokenizerError for a text that is not Unicode (a command line can hold one), or that the library refuses.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(f"the text is not Unicode: {error}") from None
        return self.ids(text)

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
    """A ``tokenizer.json``, which holds all there is to it.

    Its post-processor alone says whether a begin-of-text token is put first: transformers, too, passes over the
    ``add_bos_token`` of ``tokenizer_config.json`` then (``PreTrainedTokenizerBase._from_pretrained``).
    """

    kind = "tokenizers"

    def __init__(self, file: Path, data: bytes) -> None:
        library = imported("tokenizers", file)
        try:
            self.tokenizer = library.Tokenizer.from_buffer(data)
            self.tokenizer.no_truncation()
            self.tokenizer.no_padding()
            # What stands before some text, and nothing of what stands behind it, which can be an end-of-text token.
            probe = self.tokenizer.encode(string.ascii_letters)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises nothing narrower, and lets Rust's panics through
            raise unreadable(file, error) from None
        pairs = zip(probe.ids, probe.special_tokens_mask, strict=True)
        self.prefix = [token for token, _ in takewhile(lambda pair: pair[1], pairs)]
        size = max(self.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        bos = self.prefix[0] if self.prefix else None
        super().__init__(file, size, bos, ends_of_text(file.parent, self.tokenizer.token_to_id))

    def ids(self, text: str) -> list[int]:
        try:
            return [*self.prefix, *self.tokenizer.encode(text, add_special_tokens=False).ids]
        except Exception as error:  # the library raises nothing narrower: a model without an unknown token, say
            raise TokenizerError(f"{self.source} cannot encode the text: {one_line(error)}") from None

    def decode(self, ids: Sequence[int]) -> str:
        tokens = [self.token(index) for index in ids]
        if getattr(self.tokenizer.model, "byte_fallback", False):
            tokens = list(with_broken_bytes_replaced(tokens))
        decoder = self.tokenizer.decoder
        return decoder.decode(tokens) if decoder else " ".join(tokens)  # without a decoder, as the library does it

    def token(self, index: int) -> str:
        """The token as the vocabulary spells it. The library's own `decode` leaves out an id that has none."""
        token = self.tokenizer.id_to_token(index) if 0 <= index < self.size else None
        return unused(index) if token is None else token


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
        self.shown = {index: token for token, index in self.special.items()}
        longest_first = sorted(self.special, key=len, reverse=True)
        self.at_special = re.compile(f"({'|'.join(map(re.escape, longest_first))})")

        settings = read_json(file.parent / "tokenizer_config.json")
        self.behind_special = self.model if settings.get("legacy") else self.spaceless
        bos = self.special.get(token_named("bos_token", file.parent) or "", self.model.bos_id())
        adds_bos = bos >= 0 and settings.get("add_bos_token", True)
        eos = frozenset([self.model.eos_id()] if self.model.eos_id() >= 0 else [])
        size = max(self.pieces, *(index + 1 for index in self.special.values()))
        super().__init__(file, size, bos if adds_bos else None, ends_of_text(file.parent, self.special.get, eos))

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


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds any of `NAMES`."""
    return any(file.is_file() for name in NAMES for file in folder.glob(name))


def tokenizer_file(path: Path) -> Path:
    """The file that a folder's tokenizer is in, or the file itself. Raises TokenizerError where there is none."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise TokenizerError(f"{path}: no such file or folder")
    for name in NAMES:
        if found := sorted(file for file in path.glob(name) if file.is_file()):
            return found[0]
    raise TokenizerError(f"no tokenizer in {path}: it holds none of {', '.join(NAMES)}")


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


def token_named(role: str, folder: Path) -> str | None:
    """The token that a folder's files give a role (``bos_token``, ``eos_token``), or None."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        token = read_json(folder / name).get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            return token
    return None


def added_tokens(folder: Path) -> dict[str, int]:
    """Tokens that were added to a sentencepiece model, whose own file they are not in: token to id."""
    decoder = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    added = read_json(folder / "added_tokens.json")
    try:
        return {token["content"]: int(index) for index, token in decoder.items()} | {
            token: int(index) for token, index in added.items()
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise unreadable(folder, f"its added tokens are not token and id: {error!r}") from None


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file. Raises TokenizerError."""
    if not file.is_file():
        return {}
    try:
        values = json.loads(contents(file))
    except (ValueError, RecursionError) as error:
        raise unreadable(file, error) from None
    if not isinstance(values, dict):
        raise unreadable(file, "it holds no JSON object")
    return values


def contents(file: Path) -> bytes:
    """All of a file. Raises TokenizerError."""
    try:
        return file.read_bytes()
    except OSError as error:
        raise unreadable(file, error) from None


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
