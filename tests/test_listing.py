"""`gptbench list`: tables of what can be chosen, and the formats in which tables are written."""

import csv
import io
import json

import pytest
import torch

from gptbench.base.errors import UserError
from gptbench.build import nbytes, on_meta
from gptbench.commands.ab import composed
from gptbench.commands.listing import GROUPS, TABLES, list_command
from gptbench.commands.parsers import LISTS
from gptbench.config import ModelConfig, QuantConfig
from gptbench.config.group_options import options
from gptbench.config.targets import instantiate
from gptbench.present.formats import Cell, Column, Table, rendered, write
from gptbench.schema.metrics import METRICS
from tests.test_traffic import PUBLISHED


def listed(capsys: pytest.CaptureFixture[str], what: str) -> dict[str, dict]:
    """Rows of a list by their first column."""
    assert list_command([what, "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    return {next(iter(row.values())): row for row in rows}


def test_models_have_their_published_sizes_and_their_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys, "models")
    for name, (parameters, _) in PUBLISHED.items():
        assert rows[name]["parameters"] == parameters, name
    assert rows["auto"]["parameters"] is None
    assert rows["mixtral"]["active_parameters"] == 12_879_925_248
    sections = {model.name: model for model in options("model", ModelConfig)}
    formats = {quant.name: quant for quant in options("quant", QuantConfig)}
    for name in ("mixtral_tiny", "qwen2_5_0_5b", "qwen3_0_6b", "stories15m"):  # experts, bias, norms of heads, tied
        for quant, key in (("none", "bf16_bytes"), ("int8", "int8_bytes")):
            made = on_meta(sections[name], formats[quant], torch.bfloat16)
            assert rows[name][key] == nbytes(made), (name, quant)


def test_bits_of_a_weight_are_those_that_its_format_stores(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys, "quants")
    for quant in options("quant", QuantConfig):
        tensors = instantiate(quant).tensors(1, 4096, torch.bfloat16)
        stored = sum(torch.empty(shape, dtype=dtype, device="meta").nbytes for shape, dtype in tensors.values())
        assert rows[quant.name]["bits_per_weight"] == stored * 8 / 4096, quant.name


def test_engines_tell_whether_they_run_here(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed(capsys, "engines")
    assert rows["eager"]["runs_here"] and rows["auto"]["runs_here"]
    if not torch.cuda.is_available():
        assert not rows["fused"]["runs_here"] and "GPU" in rows["fused"]["needs"]
    assert all(row["description"] for row in rows.values())


def test_experiments_are_their_overrides_and_metrics_their_meanings(capsys: pytest.CaptureFixture[str]) -> None:
    overrides = listed(capsys, "experiments")["llama2_7b_int8"]["overrides"]
    assert {"model=llama2_7b", "quant=int8", "engine.fresh_cache=true"} <= set(overrides)
    rows = listed(capsys, "metrics")
    assert list(rows) == list(METRICS)
    assert (rows["mbu"]["label"], rows["mbu"]["unit"], rows["mbu"]["better"]) == ("MBU", "%", "higher")
    assert rows["mbu"]["meaning"] == METRICS["mbu"].meaning


def test_csv_has_json_where_a_cell_has_several_values(capsys: pytest.CaptureFixture[str]) -> None:
    for what, column in ("tasks", "values"), ("experiments", "overrides"):
        assert list_command([what, "--format", "csv"]) == 0
        table = csv.DictReader(io.StringIO(capsys.readouterr().out))
        assert [json.loads(row[column]) for row in table] == [row[column] for row in listed(capsys, what).values()]


def test_every_experiment_can_be_composed_and_is_what_its_overrides_are(capsys: pytest.CaptureFixture[str]) -> None:
    for name, row in listed(capsys, "experiments").items():
        whole, same = composed([f"experiment={name}"], None), composed(row["overrides"], None)
        assert whole == same, name


def test_every_list_has_a_table_and_people_read_it_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(LISTS) == set(TABLES) == {*GROUPS, "metrics"}
    for what in sorted(set(LISTS) - {"engines", "models"}):
        assert list_command([what]) == 0
        printed = capsys.readouterr()
        assert len(json.loads(printed.out)[what]) >= 2
        assert "│" in printed.err
    assert list_command([]) == 0
    printed = capsys.readouterr()
    assert "llama2_13b" in printed.err and set(json.loads(printed.out)["list"]) == set(LISTS)


def test_a_folder_of_ones_own_is_listed_too(capsys: pytest.CaptureFixture[str], tmp_path) -> None:
    (tmp_path / "sampling").mkdir()
    (tmp_path / "sampling" / "mine.yaml").write_text("# As I like it.\nname: mine\ntemperature: 2\n")
    assert list_command(["samplings", "--config-dir", str(tmp_path), "--format", "md"]) == 0
    assert "| mine | temperature=2 | As I like it. |" in capsys.readouterr().out
    with pytest.raises(UserError, match="--config-dir"):
        list_command(["samplings", "--config-dir", str(tmp_path / "none")])


TYPED = Table(
    "runs",
    [
        Column("name", "name"),
        Column.of(METRICS["tpot_p50_s"]),
        Column("only_key"),
        Column(head="only | head"),
        Column("k", under="o"),
    ],
    [["a|b", 0.00123456, True, "x", 5], ["c", None, None, Cell("y\nz", style="red"), None]],
    "title",
    ["a note"],
    objects=("o",),
)


def test_people_get_headings_and_units_and_programs_keys_and_recorded_values(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert rendered([TYPED], "md") == (
        "**title**\n\n| name | TPOT p50 (ms) | only \\| head |\n| --- | --: | --- |\n"
        "| a\\|b | 1.235 | x |\n| c |  | y z |\n\na note\n"
    )
    assert list(csv.reader(io.StringIO(rendered([TYPED], "csv")))) == [
        ["name", "tpot_p50_s", "only_key", "k"],
        ["a|b", "0.00123456", "true", "5"],
        ["c", "", "", ""],
    ]
    first = {"name": "a|b", "tpot_p50_s": 0.00123456, "only_key": True, "o": {"k": 5}}
    second = {"name": "c", "tpot_p50_s": None, "only_key": None, "o": {}}
    assert json.loads(rendered([TYPED], "json")) == [first, second]
    write([TYPED], "text")
    printed = capsys.readouterr()
    assert printed.out == "" and "TPOT p50 (ms)" in printed.err and "a note" in printed.err
    write([TYPED], "csv")
    assert capsys.readouterr().err == ""


def test_tables_with_the_same_columns_become_one_and_others_stay_apart() -> None:
    other = Table("others", [Column("x", "x")], [[float("nan")]])
    assert len(json.loads(rendered([TYPED, TYPED], "json"))) == 4
    assert json.loads(rendered([TYPED, other], "json"))["others"] == [{"x": None}]
    assert len(rendered([TYPED, TYPED], "csv").splitlines()) == 5
    assert rendered([TYPED, other], "csv").splitlines()[3:] == ["", "x", "nan"]
