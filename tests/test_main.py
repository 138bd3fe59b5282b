"""The command line as a user meets it: each call is a process of its own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptbench.schema import Result
from tests.warm import Warm

ROOT = Path(__file__).resolve().parent.parent
NO_CHARTS = "tracking.figures=false"  # they take longer to draw than such runs take
QUICK = ["model=mixtral_tiny", "workload.prompt=[1,2,3]", "workload.new_tokens=8", "workload.samples=2"]


def gptbench(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
    environment.pop("HYDRA_FULL_ERROR", None)
    command = [sys.executable, "-m", "gptbench", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=250)


def stored(folder: Path, empty_store: Path) -> Path:
    """A folder to work in, whose store is made already."""
    (folder / "outputs").mkdir()
    shutil.copy(empty_store, folder / "outputs" / "mlflow.db")
    return folder


def results(folder: Path) -> list[Path]:
    """Those beside Hydra's own record of the job: not the copies among MLflow's artifacts."""
    return sorted(path for path in (folder / "outputs").rglob("result*.json") if (path.parent / ".hydra").is_dir())


def test_main_job_end_to_end(tmp_path: Path) -> None:
    """Compiled generation of a quantised mixture from an empty cache, a second process, MLflow, and the last line."""
    fresh = ["engine.fresh_cache=true", "engine.measure_warm_start=true"]
    done = gptbench(tmp_path, *QUICK, "quant=int8", *fresh, NO_CHARTS)
    assert done.returncode == 0, done.stderr
    line = json.loads(done.stdout.splitlines()[-1])
    path = Path(line["result"])
    assert results(tmp_path) == [path]
    result = Result.load(path)
    assert [(c.process, c.cache) for c in result.compilations] == [("first", "cold"), ("second", "warm")]
    assert line["compile_cold_s"] > line["compile_warm_s"] > 0
    assert result.compilations[0].torch_stage_s
    assert [sample.compiles for sample in result.samples] == [0, 0]
    assert all(sample.finite and len(sample.step_s) == 7 for sample in result.samples)
    assert result.samples[0].tokens != result.samples[1].tokens
    assert result.config["model"]["_target_"] == "gptbench.model.Transformer"
    assert line["decode_tokens_per_s"] > 0
    assert 0 < line["mbu"] < 1.5
    assert set(result.traffic.positions_read) == {16}, "the padded cache is read: 11 positions rounded up"
    assert result.traffic.kv_len == list(range(4, 11))
    assert "tokens/s" in done.stderr
    assert "at the read roof" in done.stderr
    assert (tmp_path / "outputs" / "mlflow.db").exists()
    assert len(list((tmp_path / "outputs" / "roofs").glob("*.json"))) == 1
    assert list((tmp_path / "outputs" / "mlartifacts").rglob("steps.csv"))


def test_the_default_runs_trained_weights_and_shows_what_they_wrote(
    tmp_path: Path, warm: Warm, empty_store: Path
) -> None:
    short = ["workload.new_tokens=12", "workload.samples=2", "device=cpu", "engine=eager"]
    quality = ["task=quality", "task.tokens=24", "workload.prompt_text=Emma was"]
    code, done = warm.run(stored(tmp_path, empty_store), *short, *quality)
    assert code == 0, done.err
    line = done.lines[-1]
    result = Result.load(Path(line["result"]))
    assert result.checkpoint is not None
    assert result.prompt_text is not None and result.prompt_text.endswith("Emma was")
    assert result.samples[0].text[0].split()[0] in done.err
    assert line["decode_tokens_per_s"] > 0, "quality stands beside speed"
    assert 1 < line["perplexity"] < 500
    assert 0 <= line["kl_divergence"] < 0.1
    assert line["top1_agreement"] > 0.8
    assert list((tmp_path / "outputs" / "mlartifacts").rglob("text.txt"))


def test_sweep_runs_every_job_and_logs_each_under_one_parent(tmp_path: Path, warm: Warm, empty_store: Path) -> None:
    from mlflow import MlflowClient

    swept = ["sampling.top_k=5,50", "sampling.temperature=0.5,1"]
    code, done = warm.run(stored(tmp_path, empty_store), *QUICK, "-m", "engine=eager", *swept, NO_CHARTS)
    assert code == 0, done.err
    (whole,) = done.lines
    assert len(results(tmp_path)) == whole["jobs"] == whole["recorded"] == 4
    client = MlflowClient(f"sqlite:///{tmp_path}/outputs/mlflow.db")
    experiment = client.get_experiment_by_name("gptbench")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(parents) == 1
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    drawn = {(run.data.params["sampling.top_k"], run.data.params["sampling.temperature"]) for run in children}
    assert drawn == {("5", "0.5"), ("5", "1.0"), ("50", "0.5"), ("50", "1.0")}
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["quant=int9"], "quant=int9: no such option"),
        (["sampling.top_k=0"], "sampling.top_k=0: expected a number of at least 1"),
        (["model=llama2_70b", "device=cpu"], "These would fit"),
        (["quant=int8", "device.dtype=float16", "device=cpu"], "quant=int8 (model=demo): expected device.dtype"),
        (["log", "absent.json"], "absent.json: not a result of gptbench"),
        (["top_k"], "top_k"),
        (["outputs="], "outputs=: expected a folder"),
        (["tracking=null"], "tracking=null: no such option; the options are mlflow, none"),
        (["--config-dir", "."], "broken.yaml"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_exit_with_2_and_no_traceback(tmp_path: Path, warm: Warm, arguments: list[str], told: str) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "broken.yaml").write_text("a: [")
    if arguments[0] == "--config-dir":
        arguments = [*arguments, "experiment=broken"]
    code, done = warm.run(tmp_path, *arguments)
    assert code == 2, done.err
    assert told in done.err
    assert "Traceback" not in done.err
    assert done.out == ""
    assert results(tmp_path) == []
    assert not list(Path("/").glob("20??-??-??"))


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="for a machine without a GPU")
def test_a_gpu_that_is_not_there(tmp_path: Path, warm: Warm) -> None:
    code, done = warm.run(tmp_path, "device=cuda")
    assert code == 2
    assert "device.kind=cuda: expected cpu or auto" in done.err


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="for a machine without a GPU")
def test_a_machine_without_a_compiler_runs_eager_and_says_why(tmp_path: Path, warm: Warm) -> None:
    code, done = warm.run(tmp_path, *QUICK, "tracking=none", PATH=str(tmp_path))
    assert code == 0, done.err
    assert "engine=auto takes eager; fused needs an NVIDIA GPU; inductor needs a C++ compiler" in done.err
    assert done.lines[-1]["engine"] == "eager"
    code, refused = warm.run(tmp_path, *QUICK, "engine=inductor", PATH=str(tmp_path))
    assert code == 2
    assert "engine=inductor: expected eager or auto: this one needs a C++ compiler" in refused.err


def test_a_model_of_ones_own_is_one_yaml_and_its_command_repeats_it(tmp_path: Path, warm: Warm) -> None:
    (tmp_path / "mine" / "model").mkdir(parents=True)
    shape = "vocab_size: 97\ndim: 32\nn_layers: 1\nn_heads: 2\nn_kv_heads: 1\nffn_dim: 64\ncontext: 32\n"
    (tmp_path / "mine" / "model" / "own.yaml").write_text(f"_target_: gptbench.model.Transformer\nname: own\n{shape}")
    run = ["--config-dir", "mine", "model=own", *QUICK[1:], "sampling=nucleus", "engine=eager", "tracking=none"]
    code, done = warm.run(tmp_path, *run)
    assert code == 0, done.err
    (path,) = results(tmp_path)
    command = Result.load(path).command
    code, again = warm.run(tmp_path, *command[3:])
    assert code == 0, again.err
    assert len(results(tmp_path)) == 2


def test_a_server_that_is_away_loses_nothing(tmp_path: Path, warm: Warm, empty_store: Path) -> None:
    away = ["tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=2", "tracking.retries=0", NO_CHARTS]
    code, done = warm.run(tmp_path, *QUICK, "engine=eager", *away)
    assert code == 0, done.err
    (path,) = results(tmp_path)
    assert done.lines[-1]["tracking"] is None
    assert f"gptbench log {path}" in done.err
    shutil.copy(empty_store, tmp_path / "later.db")
    code, logged = warm.run(tmp_path, "log", str(path), "--uri", f"sqlite:///{tmp_path}/later.db")
    assert code == 0, logged.err
    assert "MLflow run mixtral_tiny-float32-eager-b1" in logged.out


def test_help_and_composed_config_need_no_torch(tmp_path: Path) -> None:
    code = "import sys, gptbench.__main__; assert 'torch' not in sys.modules and 'mlflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    done = gptbench(tmp_path, "--help")
    assert done.returncode == 0
    assert "mixtral_16l" in done.stdout
    assert "gptbench log RESULT.json" in done.stdout


WRONG = (
    "model=llama9",
    "sampling.topk=5",
    "sampling.top_k=0",
    "workload.new_tokens=1000000",
    "workload.prompt_text=Hello model=llama2_7b",
    "engine=fused device=cpu",
    "engine=fused device=cuda workload.batch_size=9",
    "engine=hf quant=int8",
    "quant=int8 device.dtype=float16",
)
TRY = """
import os, sys
from hydra.core.global_hydra import GlobalHydra
from gptbench.__main__ import main
for wrong in sys.argv[1:]:
    sys.argv[1:] = wrong.split()
    GlobalHydra.instance().clear()
    os.environ.pop("HYDRA_FULL_ERROR", None)  # which it has set
    print(main(), "torch" in sys.modules, flush=True)
"""
"""One after the other, in a process that starts without torch."""


def test_a_wrong_configuration_is_told_before_torch_is_imported(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRY, *WRONG]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["2 False"] * len(WRONG), done.stderr
    assert f"\n{done.stderr}".count("\ngptbench: ") == len(WRONG), done.stderr
