"""scripts/train_demo.py: reading and cleaning the novels, and a model made of a tiny text, as a user would load it."""

import importlib.util
import json
import math
import random
import sys
import zlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

SCRIPT = Path(__file__).parent.parent / "scripts" / "train_demo.py"
RECIPE = {"vocab": 300, "context": 64, "dim": 32, "layers": 2, "heads": 2, "kv_heads": 1, "ffn": 64}
TRAINING = {"steps": 12, "batch": 4, "evaluate_every": 5, "lr": 0.01, "seed": 7}


def load_script() -> ModuleType:
    """It is no module of a package."""
    spec = importlib.util.spec_from_file_location("train_demo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_demo"] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


train_demo = load_script()


def train(texts: Path, out: Path, **flags: object) -> int:
    """The exit code of the command."""
    arguments = ["train", "--text", str(texts), "--out", str(out), "--device", "cpu", "--threads", "1"]
    for name, value in (RECIPE | TRAINING | flags).items():
        arguments += [f"--{name}", str(value)]
    return train_demo.main(arguments)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nonsense of few words, some of them not ASCII, in three parts."""
    folder = tmp_path_factory.mktemp("texts")
    draw = random.Random(5)
    words = ["the", "a", "of", "Mrs.", "walked", "£20", "naïve", "morning", "rain,", "ball.", "carriage--and", "wet"]
    for name, count in (("train", 1500), ("validation", 150), ("held_out", 150)):
        text = " ".join(draw.choice(words) + draw.choice(["", "", "", "\n\n"]) for _ in range(count))
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    source = {"package": "nonsense", "version": "1.0-1", "sha256": "0" * 64}
    (folder / "source.json").write_text(json.dumps(source), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def demo(texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the command has written."""
    threads = torch.get_num_threads()
    out = tmp_path_factory.mktemp("demo") / "new" / "folder"
    assert train(texts, out) == 0
    torch.set_num_threads(threads)
    return out


def r_object(strings: list[str], *, version: int = 3, flags: int = 16) -> bytes:
    """A character vector, serialised as R does it."""

    def integers(*values: int) -> bytes:
        return b"".join(value.to_bytes(4, "big", signed=True) for value in values)

    raw = b"X\n" + integers(version, 0x40201, 0x30500)
    if version == 3:
        raw += integers(5) + b"UTF-8"
    raw += integers(flags, len(strings))
    for string in strings:
        encoded = string.encode("utf-8")
        raw += integers(0x40009, len(encoded)) + encoded
    return raw


def r_database(*objects: bytes) -> bytes:
    return b"".join(len(raw).to_bytes(4, "big") + zlib.compress(raw) for raw in objects)


@pytest.mark.parametrize("version", [2, 3])
def test_reads_an_r_database(version: int) -> None:
    novels = [["EMMA", "", "£20,000"], [], ["x" * 100_000]]
    data = r_database(*(r_object(novel, version=version) for novel in novels))
    assert [train_demo.r_strings(raw) for raw in train_demo.r_objects(data)] == novels


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\x00\x00\x00\x05hello", "not a database of zlib streams"),
        (b"\x00\x00\x00\x05" + zlib.compress(b"four"), "has 4 bytes, its header says 5"),
        (r_database(b"RDX3\n" + bytes(20)), "not an R object in XDR"),
        (r_database(r_object([], version=4)), "not an R object in XDR"),
        (r_database(r_object(["a"], flags=0x213)), "not a plain character vector"),
        (r_database(r_object([])[:-4] + b"\x00\x00\x00\x01" + b"\x00\x00\x00\x09\xff\xff\xff\xff"), "length -1"),
    ],
    ids=["no zlib", "cut short", "no XDR", "later version", "a list", "NA"],
)
def test_reads_nothing_else(data: bytes, message: str) -> None:
    with pytest.raises(train_demo.UserError, match=message):
        [train_demo.r_strings(raw) for raw in train_demo.r_objects(data)]


def test_joins_lines_to_paragraphs() -> None:
    lines = ["", "EMMA", "", "", "", "It was a fine  ", "morning.  She was", "glad.", "", '   "Indented', '   verse"']
    assert train_demo.clean(lines) == ["EMMA", "It was a fine morning. She was glad.", '"Indented verse"']


def test_a_dash_at_the_end_of_a_line_keeps_no_space() -> None:
    assert train_demo.clean(["Sorrow came--", "a gentle sorrow", "--but", "D---- it"]) == [
        "Sorrow came--a gentle sorrow--but D---- it"
    ]


def test_leaves_out_what_is_not_text() -> None:
    lines = ["Between _them_ it was love,* and", "_more_.", "", "   * * * * *", "", "***", "", "*Vide a letter.", ""]
    lines += ["  [End volume one of this edition.", "  Printed by T.]", "", "[To Mrs. Weston.]", "", "FINIS", ""]
    lines += ["A NOTE ON THE TEXT", "", "Written by a publisher."]
    assert train_demo.clean(lines) == ["Between them it was love, and more.", "[To Mrs. Weston.]"]


def test_cuts_at_headings_of_chapters() -> None:
    novel = [
        "EMMA",
        "VOLUME I",
        "CHAPTER I",
        "One.",
        "Chapter II was long.",
        "Chapter 2",
        "Two.",
        "CHAPTER XIX",
        "Three.",
    ]
    assert train_demo.chapters(novel) == [
        "EMMA\n\nVOLUME I\n\nCHAPTER I\n\nOne.\n\nChapter II was long.\n",
        "Chapter 2\n\nTwo.\n",
        "CHAPTER XIX\n\nThree.\n",
    ]
    with pytest.raises(train_demo.UserError, match="1 chapters"):
        train_demo.chapters(["EMMA", "CHAPTER I", "One."])


def test_splits_whole_chapters_from_the_end() -> None:
    chapters = [letter * size for letter, size in (("a", 900), ("b", 60), ("c", 21), ("d", 10), ("e", 11))]
    assert train_demo.split(chapters) == {
        "train": chapters[:2],
        "validation": chapters[2:3],
        "held_out": chapters[3:],
    }  # a share of 2% of 1002 characters


def test_learning_rate_warms_up_and_ends_at_zero() -> None:
    recipe = train_demo.Recipe(steps=100, lr=1.0)
    rates = [train_demo.learning_rate(step, recipe) for step in range(101)]
    assert rates[:6] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[100] == pytest.approx(0.0)


def test_folder_is_complete(demo: Path, texts: Path) -> None:
    assert {path.name for path in demo.iterdir()} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "held_out.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert (demo / "held_out.txt").read_bytes() == (texts / "held_out.txt").read_bytes()


def test_weights_are_bfloat16_and_tied(demo: Path) -> None:
    with safe_open(demo / "model.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118
    model = AutoModelForCausalLM.from_pretrained(demo)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.num_key_value_heads == 1
    assert (demo / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_tokenizer_gives_the_text_back(demo: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(demo)
    text = (demo / "held_out.txt").read_text(encoding="utf-8") + "  Never\tseen: 你好 <b>\n"
    ids = tokenizer(text, verbose=False)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == AutoModelForCausalLM.from_pretrained(demo).config.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer) == RECIPE["vocab"]


def test_card_tells_the_loss_of_the_saved_weights(demo: Path, one_thread: None) -> None:
    card = (demo / "README.md").read_text(encoding="utf-8")
    row = next(line for line in card.splitlines() if line.startswith("| held_out |"))
    _, size, count, nats, bits, digest = (cell.strip() for cell in row.strip("|").split("|"))
    text = (demo / "held_out.txt").read_text(encoding="utf-8")
    assert int(size) == len(text.encode())
    assert digest == f"`{train_demo.sha256(demo / 'held_out.txt')}`"

    model = AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
    begin, *ids = AutoTokenizer.from_pretrained(demo)(text, verbose=False)["input_ids"]
    total = 0.0
    with torch.no_grad():
        for start in range(0, len(ids), RECIPE["context"]):
            window = torch.tensor([[begin, *ids[start : start + RECIPE["context"]]]])
            total += model(window, labels=window).loss.item() * (window.shape[1] - 1)
    assert int(count) == len(ids)
    assert float(nats) == pytest.approx(total / len(ids), abs=1e-4)
    assert float(bits) == pytest.approx(total / math.log(2) / int(size), abs=1e-4)
    assert float(nats) < math.log(RECIPE["vocab"]) - 1, "nothing was learned"


def test_card_tells_what_was_done(demo: Path, texts: Path) -> None:
    card = (demo / "README.md").read_text(encoding="utf-8")
    assert f"python scripts/train_demo.py train --text {texts} --out {demo} --device cpu" in card
    assert "Debian package nonsense 1.0-1" in card
    assert f"torch {torch.__version__}" in card
    assert card.count(f"> {train_demo.PROMPT}") == 2


def test_same_seed_same_files(demo: Path, texts: Path, tmp_path: Path, one_thread: None) -> None:
    assert train(texts, tmp_path) == 0
    for name in ("model.safetensors", "tokenizer.json"):
        assert (tmp_path / name).read_bytes() == (demo / name).read_bytes()


def test_dropout_is_off_in_evaluation() -> None:
    model = train_demo.LlamaForCausalLM(
        train_demo.LlamaConfig(
            vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
        )
    )
    targets = torch.arange(16).reshape(2, 8)
    model.eval()
    before = train_demo.token_losses(model, targets)
    train_demo.add_dropout(model, 0.5)
    torch.testing.assert_close(train_demo.token_losses(model, targets), before, rtol=0, atol=0)
    model.train()
    assert not torch.equal(train_demo.token_losses(model, targets), before)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dim": 512, "layers": 8}, "at most 8000000"),
        ({"vocab": 100_000}, "--vocab 100000: the text gives"),
        ({"vocab": 100}, "--vocab 100: the text gives"),
        ({"context": 2048}, "not enough text"),
        ({"context": 32}, "--context 32: at least 64"),
        ({"heads": 3}, "--dim must be an even multiple"),
        ({"lr": 1e30}, "no finite validation loss in 12 steps"),
    ],
)
def test_mistakes_are_told(
    flags: dict[str, object],
    message: str,
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    one_thread: None,
) -> None:
    assert train(texts, tmp_path / "out", **flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_too_large_is_refused(texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread) -> None:
    """Parameters alone fit; what the file has besides makes it too large."""
    recipe = train_demo.Recipe(**(RECIPE | TRAINING))
    tokenizer = train_demo.train_tokenizer((texts / "train.txt").read_text(encoding="utf-8"), recipe.vocab)
    monkeypatch.setattr(train_demo, "MAX_BYTES", 2 * train_demo.make_model(recipe, tokenizer).num_parameters())
    assert train(texts, tmp_path, steps=1) == 2


def test_needs_the_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str], one_thread: None) -> None:
    assert train(tmp_path, tmp_path / "out") == 2
    assert "train_demo.py text --out" in capsys.readouterr().err


def test_needs_debian(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert train_demo.main(["text", "--out", str(tmp_path)]) == 2
    assert "apt-get is not installed" in capsys.readouterr().err
