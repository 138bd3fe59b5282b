"""Tokenizers: prompts are encoded as transformers does it, and every text comes back, whatever the tokens."""

import json
import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is imported

import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from gptbench.base.errors import UserError
from gptbench.text.tokenizer import Tokenizer, TokenizerError, load_tokenizer

CORPUS = [
    "Hello world, this is a text. The quick brown fox jumps over the lazy dog; it's 12345 days old.",
    "def add(a, b):\n    return a + b  # naïve café über 大家好, 你好世界",
] * 20

TEXTS = [
    "",
    " ",
    "Hello world",
    " Hello world ",
    "  two spaces\tand a tab",
    "\nlines\n\n  of\r\ntext\n",
    "1234567 3.14 it's WE'LL",
    "大家好、世界。 你好",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 flags",
    "e\u0301a\u0308 \u1e9b\u0323 combined",  # not in normal form C
    "▁<0xE4>▁ looks like pieces",
    "\x00\x7f\u200b\ufffd\U0010ffff",
]

ALPHABET = "aAbz Z09  \n\t.,'<>|/_▁éßñ\u0301漢字한\u200d😀🏽\U0001f9d1"

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


def random_texts(count: int, seed: int) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choices(ALPHABET, k=chance.randrange(40))) for _ in range(count)]


def split_then_bytes(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level_merges() -> list[tuple[str, str]]:
    """Merges of a byte-level BPE, learned from CORPUS."""
    library = Library(models.BPE())
    library.pre_tokenizer = split_then_bytes(LLAMA3_SPLIT)
    library.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=400, show_progress=False))
    return [(left, right) for left, right in json.loads(library.to_str())["model"]["merges"]]


MERGES = byte_level_merges()
LETTERS = bytes_to_unicode()
VOCABULARY = {token: rank for rank, token in enumerate([*LETTERS.values(), *map("".join, MERGES)])}


def byte_level(pattern: str, special: Sequence[str]) -> Library:
    library = Library(models.BPE(vocab=VOCABULARY, merges=MERGES, ignore_merges=True))
    library.pre_tokenizer = split_then_bytes(pattern)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(special))
    return library


def template(library: Library, *around: str) -> processors.PostProcessor:
    special = [(token, library.token_to_id(token)) for token in around if token != "$A"]
    return processors.TemplateProcessing(single=" ".join(around), special_tokens=special)


def llama3() -> Library:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    library = byte_level(LLAMA3_SPLIT, special)
    begin = template(library, "<|begin_of_text|>", "$A")
    library.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return library


def qwen() -> Library:
    library = byte_level(QWEN_SPLIT, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    library.normalizer = normalizers.NFC()
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    return library


def sentencepiece_merges() -> list[tuple[str, str]]:
    """Merges of a BPE over characters, whose spaces are ▁, learned from CORPUS."""
    library = Library(models.BPE())
    library.normalizer = normalizers.Replace(" ", "▁")
    library.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    library.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    return [(left, right) for left, right in json.loads(library.to_str())["model"]["merges"]]


def llama2() -> Library:
    """As Llama 2's: BPE with bytes for what has no piece, and texts as they are."""
    letters = sorted({letter for pair in PIECE_MERGES for piece in pair for letter in piece})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    vocabulary = {piece: index for index, piece in enumerate([*pieces, *map("".join, PIECE_MERGES)])}
    library = Library(
        models.BPE(vocab=vocabulary, merges=PIECE_MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    library.add_special_tokens(["<unk>", "<s>", "</s>"])
    library.post_processor = template(library, "<s>", "$A")
    return library


PIECE_MERGES = sentencepiece_merges()


def write(folder: Path, files: dict[str, Any]) -> Path:
    """A folder of files: text, bytes, and JSON from anything else."""
    folder.mkdir(exist_ok=True, parents=True)
    for name, content in files.items():
        if isinstance(content, Library):
            content = content.to_str()
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


FILES: dict[str, Callable[[], dict[str, Any]]] = {
    "llama2": lambda: {"tokenizer.json": llama2()},
    "llama3": lambda: {"tokenizer.json": llama3()},
    "qwen": lambda: {"tokenizer.json": qwen()},
}
"""One folder for each tokenizer there is."""


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    return {name: load_tokenizer(write(tmp_path_factory.mktemp("tokenizer"), files())) for name, files in FILES.items()}


@pytest.fixture(params=FILES)
def tokenizer(request: pytest.FixtureRequest, loaded: dict[str, Tokenizer]) -> Tokenizer:
    return loaded[request.param]


def normal(name: str, text: str) -> str:
    """What a tokenizer keeps of a text: Qwen's its normal form C, that of Llama 2 no ▁, which is their space."""
    return (
        unicodedata.normalize("NFC", text) if "qwen" in name else text if "llama3" in name else text.replace("▁", " ")
    )


# What a prompt becomes


def transformers_ids(folder: Path, text: str) -> list[int]:
    ids = AutoTokenizer.from_pretrained(str(folder))(text)["input_ids"]
    return list(ids)


@pytest.mark.parametrize("around", [None, ["<s>", "$A"], ["$A", "</s>"], ["<s>", "$A", "</s>"]], ids=str)
@pytest.mark.parametrize("add_bos_token", [None, True, False])
@pytest.mark.parametrize("kind", ["PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_the_post_processor_of_a_tokenizer_json_decides_on_begin_of_text(
    tmp_path: Path, around: list[str] | None, add_bos_token: bool | None, kind: str
) -> None:
    library = llama2()
    library.post_processor = template(library, *(around or ["$A"]))
    content = json.loads(library.to_str()) | ({} if around else {"post_processor": None})
    settings = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": add_bos_token}
    if add_bos_token is None:
        del settings["add_bos_token"]
    files = {"tokenizer.json": content, "tokenizer_config.json": settings, "config.json": {"model_type": "llama"}}
    folder = write(tmp_path, files)
    expected = transformers_ids(folder, "Hello world")
    if expected[-1] == 2:
        expected.pop()  # end of text

    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("Hello world") == expected
    assert tokenizer.bos == (1 if "<s>" in (around or []) else None)
    assert (expected[0] == 1) == (tokenizer.bos == 1)
    assert tokenizer.encode("") == [1] * (tokenizer.bos == 1)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("llama2", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}),
        ("llama3", {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin_of_text|>"}),
        ("qwen", {"tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False, "bos_token": None}),
    ],
)
def test_ids_are_those_of_transformers(tmp_path: Path, name: str, settings: dict[str, Any]) -> None:
    model_type = "qwen2" if name == "qwen" else "llama"
    files = FILES[name]() | {"tokenizer_config.json": settings, "config.json": {"model_type": model_type}}
    reference = AutoTokenizer.from_pretrained(str(write(tmp_path, files)))
    tokenizer = load_tokenizer(tmp_path)
    special = [tokenizer.decode([index]) for index in reference.all_special_ids]
    assert special
    texts = [*TEXTS, *random_texts(100, seed=1), *(f"a{token}b {token}{token}c" for token in special)]
    for text in texts:
        assert tokenizer.encode(text) == reference(text)["input_ids"], text
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == reference.decode(ids), text


def test_truncation_and_padding_in_a_file_are_left_out(tmp_path: Path) -> None:
    library = llama3()
    library.enable_truncation(3)
    library.enable_padding(length=20)
    tokenizer = load_tokenizer(write(tmp_path, {"tokenizer.json": library}))
    short, long = tokenizer.encode("a"), tokenizer.encode("word " * 50)
    assert len(short) == 2
    assert len(long) > 50


def added(content: str, **flags: bool) -> dict[str, Any]:
    """An added token as transformers saves it."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, **plain, "special": True, **flags}


FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}
BESIDE: dict[str, dict[str, dict[str, Any]]] = {
    # What is beside a tokenizer.json that has <y> alone.
    "nothing": {},
    "added_tokens": {"added_tokens.json": {"<|im_end|>": 9000, "<x>": 8000, "<y>": 12}},
    "added_tokens of its own id": {"added_tokens.json": {"<x>": 400}},
    "special_tokens_map": {
        "added_tokens.json": {"<|im_end|>": 9000},
        "special_tokens_map.json": {
            "eos_token": "<|im_end|>",
            "additional_special_tokens": ["<x>", "<y>"],
            "pad_token": {"content": "<pad>", "lstrip": True, "rstrip": False, "normalized": False},
        },
    },
    "extra in the map": {"special_tokens_map.json": {"extra_special_tokens": ["<x>"], "eos_token": "<|im_end|>"}},
    "decoder": {
        "tokenizer_config.json": FAST
        | {
            "added_tokens_decoder": {"500": added("<x>", lstrip=True), "450": added("<|im_end|>", rstrip=True)},
            "eos_token": "<x>",
        },
        "added_tokens.json": {"<pad>": 0},
        "special_tokens_map.json": {"pad_token": "<pad>"},
    },
    "not special": {
        "tokenizer_config.json": FAST | {"added_tokens_decoder": {"500": added("<x>", special=False, normalized=True)}}
    },
    "flags of its own": {"tokenizer_config.json": FAST | {"added_tokens_decoder": {"400": added("<y>", lstrip=True)}}},
    "additional": {
        "tokenizer_config.json": FAST | {"additional_special_tokens": ["<x>", "<|im_end|>"], "pad_token": "<pad>"},
        "special_tokens_map.json": {"additional_special_tokens": ["b"]},
    },
    "extra by name": {"tokenizer_config.json": FAST | {"extra_special_tokens": {"a_token": "<x>", "b_token": "<pad>"}}},
    "named": {
        "tokenizer_config.json": FAST
        | {"image_token": "<x>", "eos_token": added("<|im_end|>", lstrip=True) | {"__type": "AddedToken"}}
    },
    "in the vocabulary": {"tokenizer_config.json": FAST | {"eos_token": "th", "mask_token": "<x>"}},
    "split": {"tokenizer_config.json": FAST | {"split_special_tokens": True, "eos_token": "<|im_end|>"}},
}


def test_tokens_that_the_files_beside_a_tokenizer_json_add_are_those_of_transformers(tmp_path: Path) -> None:
    text = "a<|im_end|> the <x> <y>  c <pad> "
    library = byte_level(LLAMA3_SPLIT, ["<y>"])
    seen = set()
    for name, files in BESIDE.items():
        folder = tmp_path / name
        folder.mkdir()
        write(folder, {"tokenizer.json": library, "config.json": {"model_type": "llama"}, **files})
        expected = AutoTokenizer.from_pretrained(folder)
        tokenizer = load_tokenizer(folder)
        assert tokenizer.encode(text) == expected(text)["input_ids"], name
        assert tokenizer.size == len(expected), name
        assert tokenizer.eos == ({expected.eos_token_id} - {None}), name
        assert "<|unused" not in tokenizer.decode(range(tokenizer.size))
        seen.add(tuple(tokenizer.encode(text)))
    assert len(seen) > 9


def test_what_stands_before_a_prompt_comes_from_the_post_processor_alone(tmp_path: Path) -> None:
    """No text is encoded to find it: a vocabulary need not have any letter."""

    def bpe(*letters: str) -> Library:
        library = Library(models.BPE(vocab={token: i for i, token in enumerate(("<s>", "</s>", *letters))}, merges=[]))
        library.add_special_tokens(["<s>", "</s>"])
        library.post_processor = template(library, "<s>", "$A", "</s>")
        return library

    digits, roberta, both = bpe("1", "2"), bpe("1", "2"), bpe("1", "2")
    digits.normalizer = normalizers.Replace(Regex("[a-zA-Z]"), "")
    roberta.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0))
    both.post_processor = processors.Sequence([processors.ByteLevel(), template(both, "<s>", "<s>", "$A", "</s>")])
    words = Library(models.WordLevel(vocab={"1": 0, "2": 1}))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    unigram = Library(models.Unigram([("1", -1.0), ("2", -1.0)]))
    for library, text, expected in (
        (bpe("你", "好"), "你好", [0, 2, 3]),
        (digits, "12", [0, 2, 3]),
        (roberta, "12", [0, 2, 3]),
        (both, "12", [0, 0, 2, 3]),
        (words, "1 2", [0, 1]),
        (unigram, "12", [0, 1]),
    ):
        whole = library.encode(text).ids
        tokenizer = load_tokenizer(write(tmp_path, {"tokenizer.json": library}))
        assert tokenizer.encode(text) == expected == whole[: len(expected)]
        assert tokenizer.bos == (0 if library.post_processor else None)


# Begin and end of text


def test_the_files_beside_a_tokenizer_name_the_end_of_text(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, Any], set[int]]] = [
        ({}, set()),
        ({"tokenizer_config.json": {"eos_token": "<unk>"}}, {0}),
        ({"tokenizer_config.json": {"eos_token": {"content": "</s>"}}}, {2}),
        ({"special_tokens_map.json": {"eos_token": {"content": "<s>", "lstrip": False}}}, {1}),
        ({"config.json": {"eos_token_id": 7}, "tokenizer_config.json": {"eos_token": "<unk>"}}, {7}),
        ({"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": [8, 9]}}, {8, 9}),
        ({"config.json": {"eos_token_id": 7}, "generation_config.json": {"eos_token_id": None}}, {7}),
    ]
    for number, (files, eos) in enumerate(cases):
        folder = write(tmp_path / str(number), {"tokenizer.json": llama2(), **files})
        assert load_tokenizer(folder).eos == eos
        assert load_tokenizer(folder / "tokenizer.json").eos == eos


# Back to text


@pytest.mark.parametrize("name", FILES)
def test_every_text_comes_back(loaded: dict[str, Tokenizer], name: str) -> None:
    tokenizer = loaded[name]
    begin = "" if tokenizer.bos is None else tokenizer.decode([tokenizer.bos])
    space = " " if name == "llama2" else ""  # its decoder drops a space where a text starts with it, not with <s>
    special = {"qwen": "<|im_end|>", "llama3": "<|eot_id|>"}.get(name)
    with_special = [f"{special} a", f"a{special}", f"a {special} {special}b {special}"] if special else []
    for text in [*TEXTS, *random_texts(300, seed=4), *with_special]:
        expected = begin + space * bool(text) + normal(name, text)
        assert tokenizer.decode(tokenizer.encode(text)) == expected


@pytest.mark.parametrize(
    ("name", "special"),
    [
        ("llama2", ["<s>", "</s>", "<unk>"]),
        ("llama3", ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]),
        ("qwen", ["<|endoftext|>", "<|im_end|>"]),
    ],
)
def test_special_tokens_are_tokens_in_a_text_and_shown(
    loaded: dict[str, Tokenizer], name: str, special: list[str]
) -> None:
    tokenizer = loaded[name]
    for token in special:
        (index,) = tokenizer.encode(token)[tokenizer.bos is not None :]
        assert tokenizer.decode([index]) == token
        ids = tokenizer.encode(f"a{token}b")
        assert index in ids
        assert f"a{token}" in tokenizer.decode(ids)
        assert tokenizer.continuation(tokenizer.encode("a"), [index]) == token


def test_any_ids_can_be_decoded(tokenizer: Tokenizer) -> None:
    chance = random.Random(5)
    known = [index for index in range(tokenizer.size) if index < 600 or index > tokenizer.size - 300]
    for _ in range(300):
        ids = chance.choices(known, k=20)
        assert "<|unused" not in tokenizer.decode(ids)
        beyond = [*ids[:10], tokenizer.size, -1, *ids[10:], 10**12]
        text = tokenizer.decode(beyond)
        assert f"<|unused {tokenizer.size}|><|unused -1|>" in text
        assert text.endswith("<|unused 1000000000000|>")


def test_a_gap_in_the_ids_is_shown(tmp_path: Path) -> None:
    content = json.loads(llama2().to_str())
    content["model"]["vocab"]["gone"] = 999
    tokenizer = load_tokenizer(write(tmp_path, {"tokenizer.json": content}))
    assert tokenizer.size == 1000
    assert tokenizer.decode([998, 999]) == "<|unused 998|>gone"


def test_ids_decode_as_the_library_has_it(loaded: dict[str, Tokenizer]) -> None:
    chance = random.Random(6)
    for name in ("llama2", "llama3", "qwen"):
        tokenizer = loaded[name]
        for _ in range(200):
            ids = chance.choices(range(tokenizer.size), k=20)
            expected = tokenizer.tokenizer.decode(ids, skip_special_tokens=False)
            if name != "llama2" or "\ufffd" not in expected:  # see with_broken_bytes_replaced
                assert tokenizer.decode(ids) == expected


def test_tokens_stand_apart_where_a_tokenizer_json_has_no_decoder(tmp_path: Path) -> None:
    library = llama2()
    library.decoder = None
    tokenizer = load_tokenizer(write(tmp_path, {"tokenizer.json": library}))
    ids = tokenizer.encode("Hello")
    assert tokenizer.decode(ids) == library.decode(ids, skip_special_tokens=False) != "<s>▁Hello"


def test_bytes_that_are_no_character_leave_those_before_them_alone(tokenizer: Tokenizer) -> None:
    whole = tokenizer.encode("a😀")
    broken = [*whole, *tokenizer.encode("b😀")[-4:-1]]
    assert tokenizer.decode(broken).startswith(tokenizer.decode(whole))
    assert tokenizer.decode(broken).endswith("\ufffd")


# What new tokens add


def test_what_new_tokens_add_is_exact_wherever_they_start(tokenizer: Tokenizer) -> None:
    for text in [*TEXTS, *random_texts(100, seed=7)]:
        if "\ufffd" in text:
            continue
        ids = tokenizer.encode(text)
        for cut in range(len(ids) + 1):
            whole_characters = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
            assert whole_characters + tokenizer.continuation(ids[:cut], ids[cut:]) == tokenizer.decode(ids)


def test_new_tokens_keep_their_leading_space(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello world")
    start = next(cut for cut in range(len(ids)) if tokenizer.decode(ids[:cut]).endswith("Hello"))
    assert tokenizer.continuation(ids[:start], ids[start:]) == " world"
    assert tokenizer.continuation(ids, []) == ""
    assert tokenizer.continuation([], ids) == tokenizer.decode(ids)


def test_a_character_that_new_tokens_complete_is_theirs(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀b")
    within = [cut for cut in range(len(ids)) if tokenizer.decode(ids[:cut]).endswith("\ufffd")]
    assert within
    for cut in within:
        assert tokenizer.continuation(ids[:cut], ids[cut:]) == "😀b"


# Which file


def test_a_file_may_have_any_name(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = tmp_path / "some file"
    file.write_bytes(tokenizer.source.read_bytes())
    other = load_tokenizer(file)
    assert (other.size, other.bos) == (tokenizer.size, tokenizer.bos)
    assert other.encode("Hello world") == tokenizer.encode("Hello world")


def test_of_other_files_transformers_makes_what_is_read(tmp_path: Path) -> None:
    found = write(tmp_path / "found", {"vocab.json": VOCABULARY, "merges.txt": "\n".join(map(" ".join, MERGES))})
    write(found, {"tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"}, "config.json": {"model_type": "gpt2"}})
    told = refusal(found)
    assert "(found: vocab.json, merges.txt, tokenizer_config.json)" in told
    assert "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)" in told and "workload.prompt=" in told
    reference = AutoTokenizer.from_pretrained(found)
    reference.save_pretrained(found)
    assert load_tokenizer(found).encode("Hello world") == reference("Hello world")["input_ids"]
    for name, content in (("tokenizer.model", b"\x0a\x0e\x0a\x05<unk>"), ("qwen.tiktoken", b"IQ== 0\nIg== 1\n")):
        other = write(tmp_path / name, {name: content})
        for path in (other, other / name):
            assert name in (told := refusal(path))
            assert "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)" in told


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = "import sys, gptbench.text.tokenizer; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "gptbench.text.tokenizer" in modules
    assert not {"torch", "transformers", "tokenizers", "numpy"} & set(modules)


# Mistakes


def refusal(path: Path) -> str:
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(path)
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_path_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: no such file or folder"
    message = refusal(tmp_path)
    assert message == f"no tokenizer in {tmp_path}: it has no tokenizer.json"


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("tokenizer.json", b"", "EOF"),
        ("tokenizer.json", b"{}", "Model missing"),
        ("tokenizer.json", llama2().to_str().encode()[:-100], "EOF"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    ],
)
def test_a_broken_file_is_told_with_its_name_and_the_reason(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    for path in (tmp_path, tmp_path / name):
        message = refusal(path)
        assert str(tmp_path / name) in message
        assert reason in message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("config.json", b'{"eos_token_id": "2"}'),
        ("generation_config.json", b'{"eos_token_id": [2, "3"]}'),
        ("special_tokens_map.json", b"\xff"),
        ("tokenizer_config.json", b"nonsense"),
    ],
)
def test_a_broken_file_beside_a_tokenizer_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    write(tmp_path, {"tokenizer.json": llama2(), name: content})
    assert str(tmp_path / name) in refusal(tmp_path)


@pytest.mark.parametrize(
    "files",
    [
        {"added_tokens.json": {"<pad>": "one"}},
        {"tokenizer_config.json": {"added_tokens_decoder": {"360": "<pad>"}}},
        {"tokenizer_config.json": {"added_tokens_decoder": ["<pad>"]}},
        {"tokenizer_config.json": {"additional_special_tokens": 3}},
        {"tokenizer_config.json": {"additional_special_tokens": [3]}},
        {"special_tokens_map.json": {"pad_token": {"content": 3}}},
    ],
)
def test_broken_added_tokens_are_told(tmp_path: Path, files: dict[str, Any]) -> None:
    message = refusal(write(tmp_path, {"tokenizer.json": llama2(), **files}))
    assert str(tmp_path) in message
    assert "added tokens" in message


def test_a_missing_library_is_named(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert "tokenizers" in refusal(tokenizer.source).replace("tokenizer.json", "")


def test_a_file_that_cannot_be_opened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"tokenizer.json": llama2()})

    def refuse(file: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(os, "open", refuse)
    assert "Permission denied" in refusal(tmp_path)


def test_what_is_no_file_or_without_end_is_refused_at_once(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        file = tmp_path / name
        for replace in (os.mkfifo, os.mkdir, lambda file: file.symlink_to("/dev/zero"), lambda file: sparse(file)):
            if name == "tokenizer_config.json":
                write(tmp_path, {"tokenizer.json": llama2()})
            replace(file)
            for path in (tmp_path, file) if name != "tokenizer_config.json" else (tmp_path,):
                if not (path == file and file.is_dir()):
                    assert str(file) in refusal(path)
            file.rmdir() if file.is_dir() else file.unlink()


def sparse(file: Path) -> None:
    with file.open("wb") as opened:
        opened.truncate(2**40)


def test_a_panic_of_the_library_is_reported(tmp_path: Path) -> None:
    """Rust's panics are no Exception."""

    class Panic(BaseException):
        pass

    class Panics:
        def __getattr__(self, name: str) -> Any:
            raise Panic(f"\x1b[2J{name}\nand more")

    tokenizer = load_tokenizer(write(tmp_path, {"tokenizer.json": llama2()}))
    tokens = tokenizer.encode("Hello")
    tokenizer.tokenizer = Panics()
    with pytest.raises(TokenizerError, match=r"cannot encode the text: \\x1b\[2Jencode$"):
        tokenizer.encode("Hello")
    tokenizer.tokenizer = StubLibrary()
    assert tokenizer.decode(tokens[:2]) == "1 " + str(tokens[1]), "what was measured is kept"


class StubLibrary:
    """Has tokens, and a decoder that panics."""

    model = None

    @property
    def decoder(self) -> Any:
        return self

    def decode(self, tokens: Sequence[str]) -> str:
        raise BaseException("panic")

    def id_to_token(self, index: int) -> str:
        return str(index)


def test_what_would_take_all_time_or_memory_is_refused(tmp_path: Path) -> None:
    double = {"type": "Replace", "pattern": {"String": "l"}, "content": "ll"}
    special = {"x": {"id": "x", "ids": [1] * 1000, "tokens": ["x"] * 1000}}
    single = [{"SpecialToken": {"id": "x", "type_id": 0}}] * 1000 + [{"Sequence": {"id": "A", "type_id": 0}}]
    pair = [{"Sequence": {"id": name, "type_id": 0}} for name in "AB"]
    around = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    for reason, change in {
        "its normalizer": {"normalizer": {"type": "Sequence", "normalizers": [double] * 40}},
        "its decoder": {"decoder": {"type": "Sequence", "decoders": [double] * 40}},
        "its post_processor": {"post_processor": {"type": "Sequence", "processors": [around]}},
        "tokens around": {"post_processor": around},
    }.items():
        content = json.loads(llama2().to_str()) | change
        assert reason in refusal(write(tmp_path, {"tokenizer.json": content}))
    endless = {"type": "Replace", "pattern": {"Regex": "(x+x+)+y"}, "content": "z"}
    content = json.loads(llama2().to_str()) | {"normalizer": endless}
    with pytest.raises(TokenizerError, match=r"cannot encode the text: .*retry-limit"):
        load_tokenizer(write(tmp_path, {"tokenizer.json": content})).encode("x" * 5000)


def test_a_token_without_a_row_in_the_embedding_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(
        write(tmp_path, {"tokenizer.json": llama2(), "special_tokens_map.json": {"pad_token": "<pad>"}})
    )
    tokenizer.rows = last = tokenizer.size - 1
    tokenizer.encode("Hello")
    expected = rf"token {last} \(<pad>\) .* vocab_size={last}: the tokenizer, of {last + 1} tokens"
    with pytest.raises(TokenizerError, match=expected):
        tokenizer.encode("Hello<pad>")


def test_a_text_that_is_not_unicode_is_told(tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="not Unicode"):
        tokenizer.encode("a\udcff")
