"""Files of the user's own, named on the command line alone: in a folder outside the checkout."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gptbench.schema.files import load_record
from gptbench.schema.labels import flat, labels
from gptbench.schema.metrics import METRICS
from gptbench.schema.outcome import Outcome
from gptbench.schema.result import Result
from tests.hf import library_model, rewrite, store, stored
from tests.sweeps import SHORT
from tests.warm import ROOT, Warm

PLUGINS = Path(__file__).parent / "plugins"
RUN = [*SHORT, "device=cpu", "device.threads=1", "tracking=none"]


@pytest.fixture
def sleeper(tmp_path: Path) -> str:
    """An engine in a folder outside the checkout."""
    (tmp_path / "mine").mkdir()
    return str(shutil.copy(PLUGINS / "sleeper.py", tmp_path / "mine"))


def outcomes(folder: Path) -> list[Outcome]:
    """Of the jobs of all sweeps, in the order of their folders."""
    return [found for job in sorted(folder.glob("outputs/2*/*/*/")) if (found := Outcome.of(job)) is not None]


def recorded(outcome: Outcome) -> Result:
    assert outcome.record is not None, outcome.reason
    record = load_record(Path(outcome.record))
    assert isinstance(record, Result)
    return record


def test_an_engine_that_is_another_process_goes_all_the_way(warm: Warm, tmp_path: Path, sleeper: str) -> None:
    """A sweep over its own setting; recorded, compared, and repeated."""
    named = ["--plugin", "mine/sleeper.py"]
    code, call = warm.run(tmp_path, "-m", *named, *RUN, "engine=sleeper", "engine.step_ms=1,20")
    assert code == 0, call.err
    found = outcomes(tmp_path)
    quick, slow = map(recorded, found)
    for record in (quick, slow):
        (sample,) = record.samples
        assert len(sample.step_s) == 3
        assert len(sample.tokens[0]) == 4
        assert list(record.environment.plugins) == [sleeper]
        assert record.config["engine"]["_target_"] == "sleeper.Sleeper"
        assert record.engine_details["pid"]
        assert record.command[3:5] == ["--plugin", sleeper]
    assert min(slow.samples[0].step_s) >= 0.02
    assert quick.samples[0].tokens == slow.samples[0].tokens, "the same seed"

    records = [str(each.record) for each in found]
    code, compared = warm.run(tmp_path, "compare", *records, *named)
    assert code == 0, compared.err
    (pair,) = compared.lines[0]["pairs"]
    assert pair["metrics"]["decode_tokens_per_s"]["ratio"] < 0.5

    resumed = ["-m", "sweep.resume=true"]
    # What a record says repeats it, wherever it is typed; also in a process of its own.
    (elsewhere := tmp_path / "elsewhere").mkdir()
    code, again = warm.run(elsewhere, *quick.command[3:], *resumed, f"outputs={tmp_path}/outputs", "isolation=process")
    assert code == 0, again.err
    assert again.lines[0]["found"] == 1, again.lines

    # Another source is another measurement.
    Path(sleeper).write_text(Path(sleeper).read_text() + "# changed\n")
    code, changed = warm.run(tmp_path, *quick.command[3:], *resumed)
    assert code == 0, changed.err
    assert changed.lines[0]["found"] == 0, changed.lines


def test_two_of_its_settings_are_measured_in_turns(warm: Warm, tmp_path: Path, sleeper: str) -> None:
    sides = ["engine.step_ms=1", "engine.step_ms=4"]
    ending = ["--budget-s", "0.5"]
    code, call = warm.run(tmp_path, "ab", *sides, *RUN, "engine=sleeper", f"--plugin={sleeper}", *ending)
    assert code == 0, call.err
    assert call.lines[-1]["metrics"]["decode_tokens_per_s"]["ratio"] < 1
    assert json.loads((tmp_path / call.lines[-1]["result"]).read_text())["command"][4:6] == ["--plugin", sleeper]


def test_auto_takes_it_where_it_can_do_the_run(warm: Warm, tmp_path: Path, sleeper: str) -> None:
    arguments = ["--plugin", sleeper, *RUN, "engine=auto", "engine.order=[sleeper,eager]"]
    code, call = warm.run(tmp_path, *arguments)
    assert code == 0, call.err
    assert call.lines[0]["engine"] == "sleeper"
    code, call = warm.run(tmp_path, *arguments, "sampling.stop_tokens=[3]")
    assert code == 0, call.err
    assert "engine=auto takes eager; sleeper needs sampling.stop_tokens=[]: it stops at none" in call.err
    code, call = warm.run(tmp_path, "--plugin", sleeper, *RUN, "engine=sleeper", "task=quality")
    assert code == 2
    assert "engine=sleeper: expected eager or auto: this one needs task=speed alone" in call.err


SECTION = """
from dataclasses import dataclass
from typing import ClassVar
from gptbench.config import EngineConfig, add_option

@dataclass(kw_only=True)
class MineConfig(EngineConfig):
    TARGETS: ClassVar[tuple[str, ...]] = ("mine.Mine",)
    depth: int = 1

add_option("NAME", MineConfig.named("mine"))
"""
"""A plugin that is quickly imported."""


def test_what_is_wrong_with_a_plugin_is_said_in_a_line(warm: Warm, tmp_path: Path, sleeper: str) -> None:
    (tmp_path / "raises.py").write_text("1 / 0\n")
    (tmp_path / "syntax.py").write_text("def\n")
    (tmp_path / "lacks.py").write_text("import json\nimport no_such\n")
    (tmp_path / "twice.py").write_text(SECTION.replace("NAME", "eager"))
    (tmp_path / "mine.py").write_text(SECTION.replace("NAME", "mine"))
    (tmp_path / "other.py").write_text(SECTION.replace("NAME", "mine"))
    (tmp_path / "own" / "engine").mkdir(parents=True)
    (tmp_path / "own" / "engine" / "named.yaml").write_text("plugin: raises.py\n_target_: raises.X\nname: x\n")
    for arguments, message in {
        ("--plugin", "no.py"): "--plugin no.py: expected a Python file, but there is no such file",
        ("--plugin", "no_such"): "--plugin no_such: ModuleNotFoundError: No module named 'no_such'\n",
        ("--plugin", "raises.py"): f"--plugin raises.py: {tmp_path}/raises.py, line 1: ZeroDivisionError: division by",
        ("--plugin", "syntax.py"): f"--plugin syntax.py: {tmp_path}/syntax.py, line 1: SyntaxError: invalid syntax\n",
        (
            "--plugin",
            "lacks.py",
        ): f"--plugin lacks.py: {tmp_path}/lacks.py, line 2: ModuleNotFoundError: No module",
        ("--plugin", "twice.py"): "--plugin twice.py: engine=eager: it is there already",
        ("--plugin", "mine.py", "--plugin", "other.py"): "--plugin other.py: engine=mine: it is there already",
        ("--plugin",): "--plugin: expected a Python file or the name of a module after it",
        ("compare", "a", "b", "--plugin=no.py"): "--plugin no.py: expected a Python file",
        # Nothing but the command line names one.
        ("engine=sleeper",): "engine=sleeper: no such option",
        ("engine._target_=sleeper.Sleeper",): "engine._target_=sleeper.Sleeper: expected one of gptbench.engine",
        ("+plugin=raises.py",): "plugin=raises.py: no such field",
        ("--config-dir", "own", "engine=named"): "engine.plugin: no such field",
        ("--plugin", "mine.py", "quant._target_=mine.Mine"): "quant._target_=mine.Mine: expected one of",
    }.items():
        code, call = warm.run(tmp_path, *arguments)
        assert code == 2, (arguments, call.err)
        assert message in call.err, (arguments, call.err)
        assert "Traceback" not in call.err and "importlib" not in call.err


WRITE = """
import pickle, sys
from gptbench.config import register
from gptbench.config.guard import GuardedLoader, install
from gptbench.config.plugins import load
from hydra._internal.utils import create_config_search_path
from hydra.types import RunMode
load(sys.argv[1])
register()
install()
loader = GuardedLoader(create_config_search_path(sys.argv[2]))
composed = loader.load_configuration("config", ["model=mixtral_tiny", "engine=mine"], RunMode.RUN)
pickle.dump((composed, loader), open(sys.argv[3], "wb"))
"""
READ = """
import pickle, sys
composed, loader = pickle.load(open(sys.argv[1], "rb"))
from gptbench.config import Section, load
from gptbench.config.plugins import loaded
from omegaconf import open_dict
with open_dict(composed):
    del composed["hydra"]
print(type(load(composed).engine).__name__, load(composed).engine.depth, *loaded)
"""


def test_a_worker_that_unpickles_a_job_imports_the_plugins(tmp_path: Path) -> None:
    """As Hydra's launchers do it, on whatever machine: nothing of ours is called there first."""
    (tmp_path / "mine.py").write_text(SECTION.replace("NAME", "mine"))
    places = [str(tmp_path / "mine.py"), str(ROOT / "conf"), str(tmp_path / "pickled")]
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    subprocess.run([sys.executable, "-c", WRITE, *places], check=True, cwd=tmp_path, env=environment)
    read = [sys.executable, "-c", READ, places[2]]
    printed = subprocess.run(read, check=True, cwd="/", env=environment, capture_output=True, text=True).stdout
    assert printed.split() == ["MineConfig", "1", places[0]]


def test_a_format_of_ones_own_stores_the_weights(warm: Warm, tmp_path: Path) -> None:
    named = ["--plugin", str(shutil.copy(PLUGINS / "int4.py", tmp_path)), "quant=int4"]
    shape = [
        "model=stories15m",
        "model.n_layers=1",
        "model.dim=128",
        "model.n_heads=2",
        "model.n_kv_heads=2",
        "model.ffn_dim=128",
    ]
    code, call = warm.run(tmp_path, *named, *RUN[1:], *shape, "model.vocab_size=512", "engine=eager")
    assert code == 0, call.err
    assert call.lines[0]["quant"] == "int4"
    records = [call.lines[0]["result"]]
    mix = "quant.weights={lm_head: none, layers.*.feed_forward.*: int8}"
    code, call = warm.run(tmp_path, *named, mix, *RUN[1:], *shape, "model.vocab_size=512", "engine=eager")
    assert code == 0, call.err
    text = "lm_head=none, layers.*.feed_forward.*=int8"
    assert call.lines[0]["quant"] == f"int4 ({text})"
    records.append(call.lines[0]["result"])
    plain, mixed = (Result.load(tmp_path / record) for record in records)
    assert mixed.run_name == f"stories15m-int4 ({text})-eager-b1"
    assert dict(flat(mixed.config))["quant.weights"] == text
    assert labels([plain, mixed]) == ["int4", f"int4 ({text})"]
    code, compared = warm.run(tmp_path, "compare", *records, *named[:2])
    assert code == 0, compared.err
    assert compared.lines[0]["differences"]["quant.weights"] == ["", text]
    code, call = warm.run(tmp_path, "--plugin", "tests.plugins.int4", "quant=int4", "--cfg", "job")
    assert code == 0, call.err
    assert "_target_: tests.plugins.int4.Int4" in call.out


def test_a_task_has_its_section_its_code_and_its_record(warm: Warm, tmp_path: Path) -> None:
    """It is swept, resumed and shown; without its plugin its record is none that is known."""
    named = ["--plugin", str(shutil.copy(PLUGINS / "copying.py", tmp_path)), "task=copying", "device=cpu"]
    sizes = ["-m", "task.megabytes=[1],[2,3]", "task.repeats=2", "tracking=none", "device.measure_roof=false"]
    code, call = warm.run(tmp_path, *named, *sizes)
    assert code == 0, call.err
    paths = [Path(found.record or "") for found in outcomes(tmp_path)]
    one, two = (json.loads(path.read_text()) for path in paths)
    assert [path.name for path in paths] == ["copies.json", "copies.json"]
    assert [copied["megabytes"] for copied in one["copies"] + two["copies"]] == [1, 2, 3]
    assert all(len(copied["seconds"]) == 2 for copied in two["copies"])
    assert one["config"]["task"]["_target_"] == "copying.Copying"
    assert one["identity"] != two["identity"]
    assert "copy/3MB/gb_per_s: " in call.err
    code, again = warm.run(tmp_path, *named, *sizes, "sweep.resume=true")
    assert code == 0, again.err
    assert again.lines[0]["found"] == 2, again.lines
    code, report = warm.run(tmp_path, "report", *map(str, paths), *named[:2])
    assert code == 0, report.err
    code, unknown = warm.run(tmp_path, "report", str(paths[0]))
    assert code == 2
    assert "kind=copies: expected one of" in unknown.err
    code, refused = warm.run(tmp_path, *named, "task.repeats=0")
    assert code == 2
    assert "task.repeats=0: expected a number of at least 1" in refused.err


def test_the_metric_that_the_documentation_shows_is_one(warm: Warm, tmp_path: Path) -> None:
    shown = (ROOT / "docs" / "extending.md").read_text().partition("worst_step.py <<'PY'\n")[2].partition("\nPY\n")[0]
    (tmp_path / "worst_step.py").write_text(shown)
    code, call = warm.run(tmp_path, "--plugin", "worst_step.py", *RUN, "engine=eager")
    assert code == 0, call.err
    record = Result.load(tmp_path / call.lines[0]["result"])
    assert call.lines[0]["worst_step_s"] == max(record.samples[0].step_s)
    assert "worst step" in call.err


def test_a_family_of_models_has_its_architecture_its_codec_and_a_metric(warm: Warm, tmp_path: Path) -> None:
    """Its checkpoint gives the tokens that a Llama of the same numbers gives."""
    plain, mine = tmp_path / "plain", tmp_path / "mine"
    library_model("llama").save_pretrained(plain)
    outside = {"model.embed_tokens.weight": "in.weight", "lm_head.weight": "out.weight", "model.norm.weight": "norm"}
    rounded, renamed = {}, {}
    for name, tensor in stored(plain).items():
        if name in outside:
            rounded[name] = renamed[outside[name]] = tensor
            continue
        counts = (tensor * 64).round().int()
        number, _, within = name.removeprefix("model.layers.").partition(".")
        rounded[name] = counts / 64
        renamed[f"h.{number}.mine.{within}.count"] = counts.T.contiguous() if counts.ndim == 2 else counts
    shutil.copytree(plain, mine)
    store(plain, rounded)
    store(mine, renamed)
    settings = {"quant_method": "steps", "step": 1 / 64}
    rewrite(mine, architectures=["MineForCausalLM"], model_type="mine", quantization_config=settings)

    named = ["--plugin", str(shutil.copy(PLUGINS / "family.py", tmp_path))]
    common = [*RUN[1:], "engine=eager", "sampling.top_k=null"]
    runs = [warm.run(tmp_path, *before, str(folder), *common) for before, folder in (((), plain), (named, mine))]
    assert [code for code, _ in runs] == [0, 0], [call.err for _, call in runs]
    expected, record = (Result.load(tmp_path / call.lines[0]["result"]) for _, call in runs)
    assert record.samples[0].tokens == expected.samples[0].tokens
    assert runs[1][1].lines[0]["worst_step_s"] == max(record.samples[0].step_s)
    assert "worst step" in runs[1][1].err
    assert "worst_step_s" not in METRICS, "nothing of it stays"
    code, call = warm.run(tmp_path, str(mine), *common)
    assert code == 2
    assert 'architectures=["MineForCausalLM"]: expected one of' in call.err
