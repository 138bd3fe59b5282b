"""The prompt: from text, a file, token ids, a length, or nothing at all."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from gptbench.base.errors import ConfigError
from gptbench.config import Config, DeviceKind, ModelConfig
from gptbench.device import Device
from gptbench.generate import Workload
from gptbench.record.identity import measured
from gptbench.text.prompt import GPTFAST_TOKENS, HELD_OUT, make_tokenizer, read_text, with_prompt
from gptbench.text.tokenizer import Tokenizer, TokenizerError
from tests.models import DENSE, model_config, run_config

DEMO = model_config("demo")
BIG = replace(DENSE, vocab_size=32000, context=512)
"""A model without a tokenizer."""


def prompted(model: ModelConfig, **workload: Any) -> Config:
    """The run after its prompt was made."""
    config = run_config(model, prompt=())
    config = replace(config, workload=replace(config.workload, **workload))
    return with_prompt(config, make_tokenizer(model))


def tokenizer() -> Tokenizer:
    made = make_tokenizer(DEMO)
    assert made is not None
    return made


def test_text_becomes_the_tokens_of_the_models_own_tokenizer() -> None:
    work = prompted(DEMO, prompt_text="It is a truth").workload
    assert work.prompt == tokenizer().encode("It is a truth")
    assert work.prompt[0] == tokenizer().bos
    assert tokenizer().decode(work.prompt[1:]) == "It is a truth"
    assert (work.prompt_text, work.prompt_file, work.prompt_length) == (None, None, None)


def test_a_file_is_read_as_utf8(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("Émile — naïve\n", encoding="utf-8")
    work = prompted(DEMO, prompt_file=str(file)).workload
    assert tokenizer().decode(work.prompt[1:]) == "Émile — naïve\n"


def test_a_file_is_taken_as_it_is_but_for_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(b"\xef\xbb\xbfHello\r\n")
    assert read_text(file, "workload.prompt_file") == "Hello\r\n"


def test_no_text_takes_for_ever(tmp_path: Path) -> None:
    fifo, huge, long = tmp_path / "fifo", tmp_path / "huge", tmp_path / "long"
    os.mkfifo(fifo)
    with huge.open("wb") as file:
        file.truncate(2**40)
    for file in (fifo, huge, Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError, match=r"workload\.prompt_file=.*expected a file with text"):
            prompted(DEMO, prompt_file=str(file))
    long.write_text("It is a truth universally acknowledged, " * 200_000)
    begin = time.monotonic()
    with pytest.raises(ConfigError, match=r"expected at most 510 tokens.*prompt_length"):
        prompted(DEMO, prompt_file=str(long))
    short = long.read_text()[:20_000]
    for rows in (1, 3):
        cut = prompted(DEMO, prompt_file=str(long), prompt_length=100, batch_size=rows).workload
        whole = prompted(DEMO, prompt_text=short, prompt_length=100, batch_size=rows).workload
        assert (cut.prompt, cut.prompts) == (whole.prompt, whole.prompts)
    assert time.monotonic() - begin < 10


def test_a_length_cuts_the_text_the_file_or_the_shipped_novel(tmp_path: Path) -> None:
    text = "She was nobody with either father or sister."
    every = tokenizer().encode(text)
    assert prompted(DEMO, prompt_text=text, prompt_length=5).workload.prompt == every[:5]
    file = tmp_path / "prompt.txt"
    file.write_text(text)
    assert prompted(DEMO, prompt_file=str(file), prompt_length=len(every)).workload.prompt == every
    novel = prompted(DEMO, prompt_length=300).workload.prompt
    assert len(novel) == 300
    assert HELD_OUT.read_text(encoding="utf-8").startswith(tokenizer().decode(novel[1:-1]))


def test_rows_of_a_batch_are_windows_of_the_text_one_after_the_other() -> None:
    """The first is what a single row gets, and each begins as the text does."""
    every = tokenizer().encode(HELD_OUT.read_text(encoding="utf-8"))
    work = prompted(DEMO, prompt_length=30, batch_size=4).workload
    assert work.prompts == [every[:1] + every[1 + 29 * row : 1 + 29 * (row + 1)] for row in range(4)]
    assert work.prompt == work.prompts[0] == prompted(DEMO, prompt_length=30).workload.prompt
    assert prompted(DEMO, prompt_length=30).workload.prompts == []
    text = "She was nobody with either father or sister."
    every = tokenizer().encode(text)
    assert len(every) >= 10
    work = prompted(DEMO, prompt_text=text, prompt_length=len(every) - 2, batch_size=3).workload
    assert work.prompts == [every[:1] + every[1 + row : len(every) - 2 + row] for row in range(3)], "they overlap"


def test_without_any_the_other_rows_are_of_the_shipped_novel_or_random() -> None:
    work = prompted(DEMO, batch_size=3).workload
    assert work.prompt == work.prompts[0] == prompted(DEMO).workload.prompt
    novel = prompted(DEMO, prompt_length=len(work.prompt), batch_size=2).workload
    assert work.prompts[1:] == novel.prompts
    random = prompted(BIG, batch_size=3).workload
    assert random.prompts[0] == GPTFAST_TOKENS
    assert len({tuple(row) for row in random.prompts}) == 3
    assert {len(row) for row in random.prompts} == {len(GPTFAST_TOKENS)}
    longer = prompted(BIG, prompt_length=50, batch_size=3).workload
    assert longer.prompts[0] == prompted(BIG, prompt_length=50).workload.prompt
    assert len({tuple(row) for row in longer.prompts}) == 3


def test_all_rows_get_the_only_prompt_there_is_or_the_same_on_demand(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("She was nobody.")
    for model, given in (
        (DEMO, {"prompt": [5, 6]}),
        (DEMO, {"prompt_text": "She was"}),
        (DEMO, {"prompt_file": str(file)}),
        (DEMO, {"same_prompt": True}),
        (DEMO, {"same_prompt": True, "prompt_length": 20}),
        (BIG, {"same_prompt": True}),
    ):
        many = prompted(model, batch_size=3, **given)
        assert many.workload.prompts == []
        assert many.workload.prompt == prompted(model, **given).workload.prompt
        fed = Workload(many.workload, Device(replace(many.device, kind=DeviceKind.cpu))).prompt
        assert fed.tolist() == [many.workload.prompt] * 3
        assert with_prompt(many, make_tokenizer(model)) == many


def test_prompts_of_rows_can_be_given_and_are_what_is_fed() -> None:
    rows = [[5, 6], [7, 8], [9, 10]]
    many = prompted(DEMO, prompts=rows, batch_size=3)
    assert many.workload.prompts == rows
    assert many.workload.prompt == [5, 6]
    assert Workload(many.workload, Device(replace(many.device, kind=DeviceKind.cpu))).prompt.tolist() == rows
    assert with_prompt(many, make_tokenizer(DEMO)) == many
    same = prompted(DEMO, prompts=[[5, 6]] * 3, batch_size=3).workload
    assert (same.prompt, same.prompts) == ([5, 6], [])


def test_identity_covers_each_row_and_not_the_way_it_was_told() -> None:
    def of(**workload: Any) -> dict[str, Any]:
        return measured(prompted(DEMO, **workload))

    assert of(batch_size=2) != of(batch_size=2, same_prompt=True)
    assert of(batch_size=1) == of(batch_size=1, same_prompt=True)
    rows = prompted(DEMO, batch_size=2).workload.prompts
    assert of(batch_size=2, prompts=rows) == of(batch_size=2)
    assert of(batch_size=2, prompts=[rows[0], rows[1][::-1]]) != of(batch_size=2)


def test_without_any_it_is_the_seeds() -> None:
    assert tokenizer().decode(prompted(DEMO).workload.prompt[1:]) == "Hello, my name is"
    assert prompted(BIG).workload.prompt == GPTFAST_TOKENS


def test_token_ids_are_taken_as_they_are() -> None:
    assert prompted(DEMO, prompt=[5, 6, 7]).workload.prompt == [5, 6, 7]


def test_without_a_tokenizer_a_length_gives_seeded_random_tokens() -> None:
    first = prompted(BIG, prompt_length=100).workload.prompt
    assert first == prompted(BIG, prompt_length=100).workload.prompt
    assert first != prompted(BIG, prompt_length=100, seed=8).workload.prompt
    assert len(first) == 100
    assert len(set(first)) > 90


def test_a_tokenizer_can_be_named_for_a_model_that_has_none() -> None:
    named = replace(BIG, tokenizer=DEMO.checkpoint)
    assert prompted(named, prompt_text="Emma").workload.prompt == tokenizer().encode("Emma")


@pytest.mark.parametrize(
    ("model", "workload", "told"),
    [
        (BIG, {"prompt_text": "a"}, "workload.prompt_text=a: expected null for a model without a tokenizer"),
        (BIG, {"prompt_file": "b"}, "workload.prompt_file=b: expected null for a model without a tokenizer"),
        (DEMO, {"prompt_file": "absent"}, "workload.prompt_file=absent: expected a file with text"),
        (DEMO, {"prompt_text": "a b", "prompt_length": 9}, "workload.prompt_length=9: expected at most the 3 tokens"),
        (DENSE, {}, "model.tokenizer=null: expected a folder or file with a tokenizer, as model=dense has none"),
        (
            DEMO,
            {"prompt_text": "word " * 510},
            "word word …: expected at most 510 tokens",
        ),
        (
            DEMO,
            {"prompts": [[1]], "batch_size": 2},
            "workload.prompts=1 prompts: expected one for each of batch_size=2",
        ),
        (
            DEMO,
            {"prompts": [[1], [1, 2]], "batch_size": 2},
            "workload.prompts=prompts of 1, 2 tokens: expected prompts of the same length",
        ),
        (DEMO, {"prompts": [[]]}, "workload.prompts=prompts of 0 tokens: expected prompts of the same length"),
        (DEMO, {"prompts": [[1], [10**6]], "batch_size": 2}, "workload.prompts=1000000: expected token ids"),
        (DEMO, {"prompts": [[1]], "prompt": [2]}, "workload.prompts=[[1]]: expected null beside workload.prompt"),
        (
            DEMO,
            {"prompts": [[1]], "prompt_length": 2},
            "workload.prompt_length=2: expected null beside workload.prompts",
        ),
        (
            DEMO,
            {"prompts": [[1], [2]], "batch_size": 2, "same_prompt": True},
            "workload.same_prompt=True: expected false if workload.prompts differ",
        ),
        (
            DEMO,
            {"prompt_text": "a b", "prompt_length": 3, "batch_size": 2},
            "workload.batch_size=2: expected at most 1: the text has no more different prompts of 3 tokens",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes(model: ModelConfig, workload: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        prompted(model, **workload)
    assert told in str(raised.value)


@pytest.mark.parametrize(("content", "told"), [(b"\xff\xfe", "UTF-8"), (b" \n", "not empty")], ids=["binary", "blank"])
def test_a_file_without_text(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "prompt.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        prompted(DEMO, prompt_file=str(file))


def test_a_checkpoint_need_not_have_a_tokenizer(tmp_path: Path) -> None:
    bare = replace(BIG, checkpoint=str(tmp_path))
    assert make_tokenizer(bare) is None
    assert prompted(bare, prompt=[5, 6]).workload.prompt == [5, 6]
    with pytest.raises(ConfigError, match="null for a model without a tokenizer"):
        prompted(bare, prompt_text="a")


def test_a_text_that_gives_no_tokens(tmp_path: Path) -> None:
    library = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    library.normalizer = tokenizers.normalizers.Strip()
    library.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    library.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ConfigError, match=r"workload\.prompt_text=  : expected a text that"):
        prompted(replace(BIG, tokenizer=str(tmp_path)), prompt_text="  ")


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        prompted(replace(BIG, tokenizer=str(tmp_path)))


def test_llama_2s_ids_are_not_taken_for_a_tokenizer_that_is_not_read(tmp_path: Path) -> None:
    model = replace(BIG, checkpoint=str(tmp_path))
    assert prompted(model).workload.prompt == GPTFAST_TOKENS
    for name in ("tokenizer.model", "vocab.json", "merges.txt", "tekken.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
        for workload in ({}, {"prompt_text": "Hello"}):
            with pytest.raises(ConfigError, match=rf"^model.tokenizer=null: .*\(found: {name}\).*save_pretrained"):
                prompted(model, **workload)
        assert prompted(model, prompt=[1, 2]).workload.prompt == [1, 2]
        assert len(prompted(model, prompt_length=5).workload.prompt) == 5
        (tmp_path / name).unlink()


def test_a_tokenizer_of_another_model_is_refused() -> None:
    """Its tokens are more than the embedding has rows."""
    assert prompted(DEMO).workload.prompt
    with pytest.raises(TokenizerError, match=r"has no row in the embedding, which has vocab_size=100"):
        prompted(replace(DEMO, vocab_size=100))
