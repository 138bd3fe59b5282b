"""Names of the version before: taken on the command line with a warning, and in whatever was recorded."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gptbench.base.errors import InputError, UserError
from gptbench.commands.ab import composed
from gptbench.config import BaselineConfig
from gptbench.config.baseline import BaselineMetric, BaselineRow
from gptbench.config.commandline import prepared
from gptbench.config.mistakes import message_for
from gptbench.config.renamed import (
    FIELDS,
    METRICS,
    OPTIONS,
    RECORDED,
    current_fields,
    current_metrics,
    current_override,
)
from gptbench.schema import Result
from gptbench.schema.ab import AbResult
from gptbench.schema.metrics import METRICS as REGISTERED
from gptbench.schema.outcome import Outcome
from tests.results import made_result
from tests.test_ab import made_ab


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


def test_wherever_they_stand_in_an_override() -> None:
    for old, new in {
        "workload=choice(seed,default)": "workload=choice(gpt_fast,default)",
        "workload='seed'": "workload='gpt_fast'",
        'engine="inductor_seed", eager': 'engine="gpt_fast", eager',
        "sweep.paired=[engine.tune,sampling.top_k]": "sweep.paired=[engine.autotune,sampling.top_k]",
        "workload=seedling": "workload=seedling",
        "+engine@engine=inductor_seed": "+engine@engine=gpt_fast",
        "model=seed": "model=seed",
    }.items():
        assert current_override(old) == new


def test_in_yaml_of_ones_own_they_are_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    for text, hint in {
        "defaults: [{override /workload: seed}]": "did you mean workload=gpt_fast?",
        "engine: {tune: true}": "did you mean engine.autotune",
    }.items():
        (tmp_path / "experiment" / "own.yaml").write_text(f"# @package _global_\n{text}\n")
        arguments = ["experiment=own", "engine=fused"]
        with pytest.raises(Exception) as refused:  # noqa: PT011
            composed(arguments, str(tmp_path))
        assert hint in message_for(refused.value, arguments)


def test_a_value_under_both_names_is_refused(tmp_path: Path) -> None:
    path = made_result().save(tmp_path)
    raw = json.loads(path.read_text())
    both = {
        "kv_len": raw | {"traffic": raw["traffic"] | {"positions_filled": raw["traffic"]["kv_len"]}},
        "pdl": raw | {"config": raw["config"] | {"engine": raw["config"]["engine"] | {"pdl": True, "overlap": False}}},
    }
    for name, content in both.items():
        path.write_text(json.dumps(content))
        with pytest.raises(UserError, match=f"was renamed to {name}"):
            Result.load(path)
    for convert, values in (
        (current_fields, {"engine.tune": 1, "engine.autotune": 2}),
        (current_metrics, {"seed_gb_per_s": 1, "gptfast_gb_per_s": 2}),
    ):
        with pytest.raises(InputError, match="was renamed to"):
            convert(values)


def test_both_sides_of_an_interleaved_record(tmp_path: Path) -> None:
    result = made_ab()
    path = result.save(tmp_path)
    raw = json.loads(path.read_text())
    for side in raw["sides"].values():
        side["config"]["workload"]["name"] = "seed"
    path.write_text(json.dumps(raw))
    assert {side.config["workload"]["name"] for side in AbResult.load(path).sides.values()} == {"gpt_fast"}


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
