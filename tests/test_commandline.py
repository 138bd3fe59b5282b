"""What people type, and what they are answered."""

import importlib
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hydra import compose

import gptbench.__main__ as main
from gptbench.architecture import checkpoint_hint
from gptbench.base.errors import CheckpointError, ConfigError, UserError
from gptbench.base.paths import shipped_folder
from gptbench.base.redaction import redacted_message
from gptbench.commands.ab import composed
from gptbench.commands.compare import warn_unread
from gptbench.commands.parsers import PARSERS
from gptbench.compare.baseline import read_baseline
from gptbench.config import Config, MLflowConfig, SweepConfig, guard, load, run_folder, shipped
from gptbench.config.commandline import COMMANDS, CommandLineError, prepared, split, typed
from gptbench.config.mistakes import message_for
from gptbench.execute import attempt
from gptbench.execute.job import Attempt, Job
from gptbench.present import console, tables
from gptbench.present.terminal import Terminal
from gptbench.sweep import Product, Space
from gptbench.sweep.space import overrides_parser
from tests.results import made_result

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
        with pytest.raises(UserError, match="expected none of tracking, outputs"):
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

    run_folder.before[run] = run_folder.existing(run, ".hydra")
    hydras_files()
    run_folder.forget(run, ".hydra")
    assert list(tmp_path.iterdir()) == []
    for kept in ("result.json", ".hydra/mine.yaml", "other/file"):
        hydras_files()
        (run / kept).parent.mkdir(exist_ok=True)
        (run / kept).write_text("")
        run_folder.forget(run, ".hydra")
        assert len([path for path in run.rglob("*") if path.is_file()]) == 5
        (run / kept).unlink()
        run_folder.forget(run, ".hydra")


def test_ctrl_c_says_what_became_of_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(said: list[str]) -> int:
        raise KeyboardInterrupt(*said)

    monkeypatch.setattr(main, "run", interrupted)
    for said, text in ([], "interrupted; nothing was recorded"), (["interrupted; of 3 jobs"], "interrupted; of 3 jobs"):
        assert main.called(said) == 130
        assert capsys.readouterr().err == f"gptbench: {text}\n"


def test_what_goes_wrong_is_printed_however_quiet_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console.console, "quiet", True)
    result = made_result()
    path = result.save(tmp_path)
    section = MLflowConfig(_target_=MLflowConfig.TARGETS[0], name="mlflow", uri="http://127.0.0.1:9", retries=0)
    config = SimpleNamespace(tracking=section, outputs=str(tmp_path))
    job = Job(cast(Config, config), cast(Config, config), [], tmp_path)
    attempt.publish(Attempt(job, record=result, path=path), Terminal(quiet=True))
    monkeypatch.setattr(tables, "why_busy", lambda _: "measured on a busy machine: of [two] others")
    tables.show_busy(result)
    warn_unread("x.json: cut off")
    err = capsys.readouterr().err
    for text in ("Not tracked: tracking.uri=http://127.0.0.1:9: ", "of [two] others", "left out: x.json: cut off"):
        assert text in err
    assert "result: " not in err
    assert console.console.quiet


TEXTS = (
    "Hello, world",
    "What's up?",
    'say "so"',
    "true",
    "1e3",
    "1_000",
    "[INST] a [/INST]",
    "{a: 1}",
    "a=b",
    "(x",
    "你好",
)
TEXTS += ("C:\\new\\", "\t x ", "two\nlines", "50%", "a#b", "None", "-1", "$5", "é\udcff")


def run_of(*arguments: str) -> Config:
    overrides = prepared(arguments)
    return load(compose("config", overrides), overrides)


@pytest.mark.usefixtures("composing")
def test_a_text_gets_to_its_field_as_it_was_typed() -> None:
    for text in TEXTS:
        names = ["workload.prompt_text", *(["model.tokenizer"] if "," not in text else [])]
        config = run_of(*(f"{name}={text}" for name in names))
        assert config.workload.prompt_text == text
        assert config.model.tokenizer == text or "," in text
    for typed_so, meant in (("'a, b'", "a, b"), ('"true"', "true"), ("null", None), (r"a\, b", "a, b")):
        assert run_of(f"workload.prompt_text={typed_so}").workload.prompt_text == meant
    assert run_of("outputs=~/x").outputs == str(Path("~/x").expanduser())


def jobs(*arguments: str) -> list[str]:
    overrides = overrides_parser().parse_overrides(prepared(arguments, sweep=True))
    config = SweepConfig(_target_="gptbench.sweep.Product", name="product")
    return [" ".join(job) for job in Product(config).draw(Space.of(overrides, []))]


@pytest.mark.usefixtures("composing")
def test_texts_of_a_sweep_end_at_commas(capsys: pytest.CaptureFixture[str]) -> None:
    for typed_so in ("true,1e3,'a, b'", "choice(true, 1e3,'a, b')"):
        found = [compose("config", [job]).workload.prompt_text for job in jobs(f"workload.prompt_text={typed_so}")]
        assert found == ["true", "1e3", "a, b"]
    assert capsys.readouterr().err == ""
    assert jobs("workload.prompt_text=Hello, world") == ["workload.prompt_text=Hello", "workload.prompt_text=world"]
    assert """as one text: 'workload.prompt_text="Hello, world"'""" in capsys.readouterr().err


def test_ranges_hold_what_they_say() -> None:
    for text, values in {
        "range(0.1,0.4,0.1)": "0.1 0.2 0.3",
        "range(0.1,0.35,0.1)": "0.1 0.2 0.3",
        "range(1,0,-0.25)": "1.0 0.75 0.5 0.25",
        "range(1,4)": "1 2 3",
        "sort(range(10,1,-4))": "2 6 10",
        "sort(range(1,10,4),reverse=true)": "9 5 1",
        "sort(range(1.3,0,-0.5))": "0.3 0.8 1.3",
        "sort(3,1,2)": "1 2 3",
    }.items():
        assert [job.partition("=")[2] for job in jobs(f"sampling.top_p={text}")] == values.split(), text
    for text in ("range(1,5,0)", "range(5,1)", "range(0.1,1,0.0)", "range(0,inf,0.5)", "int(range(0.5,3,0.5))"):
        with pytest.raises(UserError):
            jobs(f"sampling.top_p={text}")


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with checkpoints of odd names, and one in a cache of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path))
    kept = tmp_path / "hub" / "models--Org--Tiny-1.5"
    (kept / "snapshots").mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    for folder in (tmp_path / "mine", tmp_path / "a,b (größe)'x%20", kept / "snapshots" / "abc"):
        folder.symlink_to(shipped_folder() / "demo")
    return tmp_path


@pytest.mark.usefixtures("composing")
def test_a_model_may_be_a_folder_or_a_name(checkpoints: Path) -> None:
    odd = "a,b (größe)'x%20"
    for typed_so in ("mine", "model=mine", "./mine", "~/mine", "model=~/mine", odd, f"model={odd}", f"./{odd}"):
        config = run_of(typed_so)
        assert config.model.dim == 256
        assert config.model.checkpoint is not None and Path(config.model.checkpoint).is_dir(), typed_so
    snapshot = str(checkpoints / "hub" / "models--Org--Tiny-1.5" / "snapshots" / "abc")
    for typed_so in ("Org/Tiny-1.5", "model=Org/Tiny-1.5@main", "hub/models--Org--Tiny-1.5"):
        assert Path(str(run_of(typed_so).model.checkpoint)).absolute() == Path(snapshot)
    assert run_of("model=demo", "model.checkpoint=Org/Tiny-1.5").model.checkpoint == snapshot
    with pytest.raises(CheckpointError, match=r"hf download Org/Other; then: gptbench Org/Other"):
        run_of("Org/Other")
    assert run_of("model=demo").model.name == "demo", "an option goes before a folder"
    assert jobs(f'model=mine,demo,Org/Tiny-1.5,"{odd}"', "quant=int8") == [
        "quant=int8 model=auto model.checkpoint='mine'",
        "quant=int8 model=demo",
        "quant=int8 model=auto model.checkpoint='Org/Tiny-1.5'",
        """quant=int8 model=auto model.checkpoint='a,b (größe)\\'x%20'""",
    ]


def test_options_are_told_from_overrides() -> None:
    typed_so = ["a=1", "-m", "--config-dir", "x", "b=2", "-cd=y", "--cfg", "job"]
    assert split(typed_so) == (["-m", "--config-dir", "x", "-cd=y", "--cfg", "job"], ["a=1", "b=2"])


def answer(*arguments: str) -> str:
    try:
        overrides = typed(arguments)
        load(compose("config", overrides), overrides)
    except Exception as error:
        return message_for(error, arguments)
    raise AssertionError(arguments)


@pytest.mark.usefixtures("composing")
def test_what_is_wrong_is_told_with_what_was_meant() -> None:
    for typed_so, parts in {
        "repport": ["expected a command", "did you mean report?"],
        "top_k": ["did you mean sampling.top_k=…?"],
        "dmeo": ["did you mean model=demo?"],
        "list": ["expected a command (compare, ab"],
        "temperature=0.5": ["no such field", "did you mean sampling.temperature=0.5?"],
        "sampling.topk=5": ["no such field; the fields are", "did you mean sampling.top_k=5?"],
        "modle=demo": ["did you mean model=demo?"],
        "quant=int9": ["no such option; the options are int8, none; did you mean quant=int8?"],
        "--quite": ["no such option; did you mean --quiet?"],
        "--config-dir": ["expected one argument"],
        "sampling.top_k=1,2": ["several values need -m"],
        "sampling.stop_tokens=1,2": ["one list: 'sampling.stop_tokens=[1,2]'"],
        "model.checkpoint=/a,/b": ["""one text: 'model.checkpoint="/a,/b"'"""],
        "sampling.stop_tokens=eos": ["sampling.stop_tokens=eos: expected a list of token ids", "eos_token_id"],
        "sampling.stop_tokens=[eos]": ["sampling.stop_tokens=[eos]: expected a list of token ids in brackets, such as"],
        "sampling.top_k=abc": ["sampling.top_k=abc: expected a whole number, or null"],
        "sampling.temperature=hot": ["sampling.temperature=hot: expected a number"],
        "quiet=maybe": ["quiet=maybe: expected true or false"],
        "device.dtype=fp16": [
            "device.dtype=fp16: expected one of auto, float32, bfloat16, float16; did you mean float16?"
        ],
        "workload.samples=null": ["workload.samples=null: expected a whole number"],
        "sampling=3": ["sampling=3: no such option; the options are default, greedy, nucleus"],
        "device=gpu": ["did you mean device=cuda?"],
        "help": ["gptbench --help"],
        "sampling.top_k=it's": ["a value that can be parsed", "sampling.top_k="],
        "workload.prompt_text=${": ["begins an interpolation"],
        "größe=3": ["'größe' is not the name of a field"],
    }.items():
        said = answer(typed_so)
        for part in parts:
            assert part in said, said
        assert not any(word in said for word in ("hydra.cc", "Lexer", "<EOF>", "Error executing"))
    assert issubclass(CommandLineError, UserError)
    first, second = ValueError("first"), ValueError("second")
    first.__context__, second.__context__ = second, first
    assert message_for(first) == "first"
    quoted = "quote a value that contains a comma: 'tracking.uri=\"…\"'"
    with pytest.raises(UserError, match=re.escape(quoted)) as refused:
        jobs("tracking.uri=http://u:a,b@host")
    assert redacted_message(str(refused.value)) == str(refused.value)


def test_mistakes_in_files_of_ones_own_are_said_in_our_words(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for text, expected in {
        OWN + "bogus: 1\n": r"model\.bogus: no such field; the fields are _target_, name, [\w, ]+",
        OWN.replace("32", "abc"): "model.dim=abc: expected a whole number",
        "- a\n": "model/own: expected fields with values, not a list",
        "a: [\n": rf"{tmp_path}/model/own\.yaml, line 2: not valid YAML: .+",
    }.items():
        (tmp_path / "model" / "own.yaml").write_text(text)
        with pytest.raises(UserError, match=f"^{expected}$"):
            composed(["model=own"], str(tmp_path))


def test_a_file_of_a_checkpoint_is_not_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("ck", "empty"):
        Path(folder).mkdir()
    for name in ("config.json", "model.safetensors"):
        Path("ck", name).write_text("{}")
        for given in (f"ck/{name}", f"./ck/{name}"):
            assert "give the folder: ck" in str(checkpoint_hint(given))
        with pytest.raises(CommandLineError, match="give the folder: ck"):
            prepared([f"ck/{name}"])
    with pytest.raises(CommandLineError, match=r"empty: a folder with no config\.json in it"):
        prepared(["empty"])
    assert (
        checkpoint_hint("ck")
        is checkpoint_hint("nope")
        is checkpoint_hint("a\0b")
        is checkpoint_hint("x" * 5000)
        is None
    )


def test_help_and_version_need_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from gptbench.__main__ import main
for arguments in {arguments}:
    sys.argv[1:] = arguments
    try:
        assert main() == 0
    except SystemExit as ended:
        assert not ended.code
    assert not {{"torch", "mlflow", "matplotlib"}} & set(sys.modules), arguments
"""
    arguments = [["--version"], ["--help"], *([name, "--help"] for name in PARSERS)]
    done = subprocess.run(
        [sys.executable, "-c", code.format(arguments=arguments)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("gptbench 0.")
    assert "%%" not in done.stdout
    assert list(PARSERS) == list(COMMANDS)


def test_a_name_leads_to_no_other_file() -> None:
    assert shipped("model", "demo")["dim"] == 256
    for name in ("../model/demo", "x" * 300, "", "a\0b"):
        assert shipped("model", name) == {}


def test_what_a_command_is_given_wrongly_is_said_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def imported(module: str) -> None:
        raise AssertionError(f"{module} was imported")

    monkeypatch.setattr(importlib, "import_module", imported)
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            main.run([command, "--no-such-option"])
        assert ended.value.code == 2
        assert f"usage: gptbench {command} " in capsys.readouterr().err
