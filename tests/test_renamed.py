"""Names of the version before: taken on the command line with a warning, and in whatever was recorded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gptbench.config import BaselineConfig
from gptbench.config.baseline import BaselineMetric, BaselineRow
from gptbench.config.commandline import prepared
from gptbench.config.renamed import FIELDS, METRICS, OPTIONS, RECORDED
from gptbench.schema import Result
from gptbench.schema.metrics import METRICS as REGISTERED
from gptbench.schema.outcome import Outcome
from tests.results import made_result


def test_on_the_command_line_they_are_taken_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    given = ["workload=seed", "engine=inductor_seed,fused", "+engine.tune=true", "engine.tiles=/a,b", "workload.seed=3"]
    assert prepared(given, sweep=True) == [
        "workload=gpt_fast", "engine=gpt_fast,fused", "+engine.autotune=true", "engine.tile_cache=/a,b",
        "workload.seed=3"
    ]  # fmt: skip
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == 4
    assert (
        warned[0] == "gptbench: workload=seed: renamed to workload=gpt_fast; the next version accepts only the new name"
    )


def test_a_record_with_them_is_what_it_is_with_todays(tmp_path: Path) -> None:
    result = made_result()
    fused = {
        "_target_": "gptbench.engine.fused.Fused",
        "name": "fused",
        "pdl": True,
        "autotune": False,
        "tile_cache": "t",
    }
    result = replace(result, config=result.config | {"engine": fused})
    result.config["workload"]["name"] = "gpt_fast"
    path = result.save(tmp_path)
    text = path.read_text()
    for names in (*FIELDS.values(), *RECORDED.values()):
        for old, new in names.items():
            assert f'"{new}":' in text
            text = text.replace(f'"{new}":', f'"{old}":')
    path.write_text(text.replace('"name": "gpt_fast"', '"name": "seed"'))
    assert '"name": "seed"' in path.read_text()
    assert Result.load(path) == result


def test_metrics_of_outcomes_and_baselines(tmp_path: Path) -> None:
    assert all(new in REGISTERED for new in METRICS.values() if "flops" not in new)
    Outcome(status="recorded", metrics=dict.fromkeys(METRICS.values(), 2.0)).save(tmp_path)
    file = tmp_path / Outcome.FILE
    raw = json.loads(file.read_text())
    file.write_text(json.dumps(raw | {"metrics": dict.fromkeys(METRICS, 2.0)}))
    outcome = Outcome.of(tmp_path)
    assert outcome is not None
    assert outcome.metrics == dict.fromkeys(METRICS.values(), 2.0)
    config = BaselineConfig(
        _target_="gptbench.compare.Baseline", name="old", device="A100",
        targets={"llama2_7b/int8": {"seed_tokens_per_s": 144.0}},
        rows={"row": BaselineRow(metrics={"seed_compile_s": BaselineMetric(value=3.0)})},
    )  # fmt: skip
    assert config.targets == {"llama2_7b/int8": {"gptfast_tokens_per_s": 144.0}}
    assert list(config.rows["row"].metrics) == ["gptfast_compile_s"]


def test_no_name_has_two_meanings() -> None:
    for names in (METRICS, *FIELDS.values(), *OPTIONS.values(), *RECORDED.values()):
        assert not names.keys() & set(names.values())
