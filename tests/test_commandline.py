"""What people type, and what they are answered."""

from pathlib import Path

import pytest

from gptbench import guard
from gptbench.commands.ab import composed
from gptbench.compare.baseline import read_baseline
from gptbench.config import load
from gptbench.errors import ConfigError, UserError
from gptbench.job import forget

OWN = """_target_: gptbench.model.Transformer
name: own
vocab_size: 97
dim: 32
n_layers: 1
n_heads: 2
n_kv_heads: 1
ffn_dim: 64
context: 32
"""
ROW = """_target_: gptbench.compare.Baseline
name: mine
device: x
rows:
  one:
    overrides: [model=demo, {override}]
"""


def test_configurations_of_ones_own_in_ab_and_gate(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "own.yaml").write_text(OWN)
    overrides = ["model=own", "workload.prompt=[1]", "workload.new_tokens=3", "sampling=greedy"]
    assert load(composed(overrides, str(tmp_path)), overrides).model.dim == 32


def test_a_folder_of_configurations_that_is_not_there() -> None:
    told = "--config-dir=/nope: expected a folder"
    with pytest.raises(ConfigError, match=told):
        guard.check_arguments(["--config-dir", "/nope", "model=demo"])
    with pytest.raises(ConfigError, match=told):
        composed(["model=demo"], "/nope")


def test_a_baseline_does_not_say_where_its_runs_write_to(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    for override in ("outputs=/elsewhere", "tracking.uri=http://x", "hydra.run.dir=/elsewhere", "+outputs=/elsewhere"):
        file.write_text(ROW.format(override=override))
        with pytest.raises(UserError, match="expected nothing of tracking, outputs"):
            read_baseline(str(file))
    file.write_text(ROW.format(override="quant=int8"))
    assert read_baseline(str(file)).rows["one"].overrides == ["model=demo", "quant=int8"]


def test_a_run_that_was_refused_leaves_no_folder(tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "day" / "clock"

    def hydras_files() -> None:
        (run / ".hydra").mkdir(parents=True)
        for name in ("config", "hydra", "overrides"):
            (run / ".hydra" / f"{name}.yaml").write_text("")
        (run / "gptbench.log").write_text("")

    hydras_files()
    forget(run, ".hydra")
    assert list(tmp_path.iterdir()) == []
    for kept in ("result.json", ".hydra/mine.yaml", "other/file"):
        hydras_files()
        (run / kept).parent.mkdir(exist_ok=True)
        (run / kept).write_text("")
        forget(run, ".hydra")
        assert len([path for path in run.rglob("*") if path.is_file()]) == 5
        (run / kept).unlink()
        forget(run, ".hydra")
