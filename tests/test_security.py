"""Hostile configurations, checkpoints, cache files and records: each is really tried, and nothing of it is executed.

What would be executed leaves a trace: it makes a file, changes or deletes one, or imports the package `evil`. The same
attempts with the guard taken away show that those traces would be seen.
"""

import contextlib
import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal import hydra as internals
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import InterpolationResolutionError
from omegaconf.resolvers import oc

from gptbench.base.errors import UserError
from gptbench.base.paths import conf_folder, shipped_folder
from gptbench.config import Config, MLflowConfig, explain, guard, load, refusal, register
from gptbench.config.guard import GuardedLoader, check_arguments, install
from gptbench.execute.job import RaisedError
from gptbench.measure.roof import measurements
from gptbench.schema.outcome import Outcome, Status
from gptbench.sweep import sweeper
from gptbench.text.prompt import make_tokenizer
from tests.results import made_result

ROOT = Path(__file__).parents[1]

EVIL = """
import logging, os, pathlib
pathlib.Path(os.environ["CANARY"]).touch()
value = 3

def touch(*args, **kwargs):
    pathlib.Path(os.environ["CANARY"]).touch()

class Callback:
    pass

class Handler(logging.Handler):
    def emit(self, record):
        pass
"""

SECRETS = ("AWS_SECRET_ACCESS_KEY", "MLFLOW_TRACKING_PASSWORD", "HF_TOKEN")


@dataclass
class Machine:
    """A folder in which everything happens.

    Attributes:
        folder: the working directory. `evil` lies in `modules` there, which Python searches.
        canary: a file that is made by what is executed.
        victim: one that is deleted or emptied.
        jobs: configurations that reached a job.
    """

    folder: Path
    canary: Path
    victim: Path
    jobs: list[Config]

    def text(self, told: str) -> str:
        """With paths for the words CANARY, VICTIM and FOLDER."""
        for name in ("canary", "victim", "folder"):
            told = told.replace(name.upper(), str(getattr(self, name)))
        return told

    def job(self, composed: DictConfig) -> Outcome:
        self.jobs.append(load(composed, HydraConfig.get().overrides.task))
        outcome = Outcome(status=Status.recorded.value)
        outcome.save(Path(HydraConfig.get().runtime.output_dir))
        return outcome

    def run(self, arguments: list[str], guarded: bool = True) -> None:
        """As `gptbench.__main__` starts Hydra."""
        sys.argv[1:] = [self.text(argument) for argument in arguments]
        if guarded:
            check_arguments(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(self.job)()

    def files(self) -> set[Path]:
        """All but what a run writes where it may."""
        return {
            path for path in self.folder.rglob("*") if "outputs" not in path.parts and "__pycache__" not in path.parts
        }

    def harmed(self) -> bool:
        """Whether anything was executed."""
        return self.canary.exists() or "evil" in sys.modules or not self.victim.exists() or not self.victim.read_text()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    package = tmp_path / "modules" / "evil"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(EVIL)
    here = Machine(tmp_path, tmp_path / "canary", tmp_path / "victim", [])
    here.victim.write_text("precious")
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY", str(here.canary))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for name in SECRETS:
        monkeypatch.setenv(name, f"5ecret-{name}")
    monkeypatch.setattr(sys, "argv", ["gptbench"])
    # Hydra composes once more for it, and an error counts as none: takes half of the time.
    monkeypatch.setattr(internals.Hydra, "get_mode", lambda *_, **__: None)
    register()
    install()
    sweeper.register()
    root = logging.getLogger()
    handlers, level, disabled = root.handlers[:], root.level, logging.root.manager.disable
    yield here
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.disable(disabled)
    sys.modules.pop("evil", None)


OPEN = "{_target_: builtins.open, file: CANARY, mode: w}"
"""Hydra's own list of what it does not build leaves this out."""
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
SLURM = "hydra/launcher=submitit_slurm"
PICKLE = "FOLDER/evil.pickle"

CASES: dict[str, tuple[list[str], str]] = {
    # Targets that no section lists: what is given, and what must be told
    "os": (["model._target_=os.system"], "model._target_=os.system: expected one of gptbench.model.Transformer"),
    "builtins": (["engine._target_=builtins.eval"], "engine._target_=builtins.eval: expected one of gptbench."),
    "pathlib": (["sampling._target_=pathlib.Path.unlink"], "sampling._target_"),
    "pickle": (["quant._target_=pickle.loads"], "quant._target_=pickle.loads"),
    "subprocess": (["device._target_=subprocess.run"], "device._target_"),
    "shutil": (["task._target_=shutil.rmtree"], "task._target_"),
    "hydra-instantiate": (["workload._target_=hydra.utils.instantiate"], "workload._target_"),
    "hydra-locate": (["baseline._target_=hydra._internal.utils._locate"], "baseline._target_"),
    "hydra-method": (["tracking._target_=hydra.utils.get_method"], "tracking._target_"),
    "import": (["tracking._target_=evil.touch"], "tracking._target_=evil.touch"),
    "own-function": (["model._target_=gptbench.execute.run.run"], "model._target_=gptbench.execute.run.run"),
    "other-group": (["model._target_=gptbench.engine.Eager"], "model._target_=gptbench.engine.Eager"),
    "interpolated": (
        ["tracking.run_name=os.system", "model._target_=${tracking.run_name}"],
        "model._target_=os.system",
    ),
    "by-hydra": (["hydra.job.name=os.system", "model._target_=${hydra:job.name}"], "model._target_=${hydra:job.name}"),
    "nested": (
        ["model=llama3_2_1b", "+model.rope_scaling._target_=os.system"],
        "model.rope_scaling._target_=os.system",
    ),
    "new-key": ([f"+evil={OPEN}"], "evil._target_=builtins.open"),
    "in-list": ([f"+evil=[1, {OPEN}]"], "evil.1._target_=builtins.open"),
    "in-lists": (["+evil=[[{a: [{_target_: os.remove, path: VICTIM}]}]]"], "evil.0.0.a.0._target_=os.remove"),
    "created": (["+evil='${oc.create:{_target_:os.remove,path:VICTIM}}'"], "evil._target_=os.remove"),
    "decoded": (["+evil='${oc.decode:\"{_target_:os.remove}\"}'"], "evil._target_=os.remove"),
    "around-itself": (["+evil={a: '${evil}', b: [{_target_: os.remove}]}"], "evil.b.0._target_=os.remove"),
    "targets-of-baseline": (["+baseline.targets._target_={a: 1}"], "baseline.targets._target_"),
    "args": (["+sampling._args_=[VICTIM]"], "sampling._args_"),
    "partial": (["+engine._partial_=true"], "engine._partial_"),
    "recursive": (["+task._recursive_=false"], "task._recursive_"),
    "convert": (["+evil.a._convert_=object"], "evil.a._convert_"),
    "swept": (["-m", "model._target_=os.system,builtins.eval"], "model._target_=os.system"),
    "in-experiment": (["experiment=evil_target"], "model._target_=evil.touch"),
    "twice": (["+evil.a='${model}'"], "evil.a._target_=gptbench.model.Transformer"),
    "in-hydra": ([f"+hydra.help.x={OPEN}"], "hydra.help.x._target_=builtins.open"),
    # Callbacks
    "callback": (["+hydra.callbacks.x._target_=evil.Callback"], "hydra.callbacks"),
    "callback-unknown": (["+hydra.callbacks.x.y=1"], "hydra.callbacks=['x']: expected nothing"),
    "callback-builtin": ([f"+hydra.callbacks.x={OPEN}"], "hydra.callbacks"),
    "callback-swept": (["-m", f"+hydra.callbacks.x={OPEN}"], "hydra.callbacks"),
    "callback-pickle": (["+hydra.callbacks.x={_target_: pickle.loads, _args_: [x]}"], "hydra.callbacks"),
    "callback-option": (["hydra/callbacks=evil"], "hydra.callbacks"),
    "callback-experiment": (["experiment=evil_callback"], "hydra.callbacks"),
    "callback-interpolated": ([f"+evil.x={OPEN}", "hydra.callbacks='${evil}'"], "_target_=builtins.open"),
    # Launchers and sweepers
    "launcher": (["-m", "hydra.launcher._target_=evil.touch"], "hydra.launcher._target_=evil.touch"),
    "launcher-interpolated": (["hydra.launcher._target_=${oc.env:HOME}"], "hydra.launcher._target_=/"),
    "launcher-plugin": (["hydra/launcher=ray_aws"], "hydra.launcher._target_=hydra_plugins.hydra_ray_launcher.ray_aws"),
    "launcher-nested": (["-m", f"+hydra.launcher.x={OPEN}"], "hydra.launcher.x._target_"),
    "launcher-elsewhere": (
        [f"+evil={{a: {BASIC}}}", "hydra.launcher=${evil}"],
        "hydra.launcher._target_=None: expected one of",
    ),
    "launcher-experiment": (["experiment=evil_launcher"], "hydra.launcher.setup"),
    "sweeper": (["-m", "hydra.sweeper._target_=evil.touch"], "hydra.sweeper._target_=evil.touch"),
    "sweeper-nested": (["-m", f"+hydra.sweeper.x={OPEN}"], "hydra.sweeper.x._target_"),
    "sweeper-created": (
        ["-m", "+hydra.sweeper.params='${oc.create:{_target_:os.remove,path:VICTIM}}'"],
        "hydra.sweeper.params._target_=os.remove",
    ),
    "sweeper-basic": (["-m", "hydra/sweeper=basic", "sampling.top_k=5,6"], "hydra.sweeper._target_=hydra._internal"),
    "sweeper-params": (["-m", "experiment=evil_params"], "hydra.sweeper.params.tracking._target_=evil.touch"),
    "sweeper-job": (["-m", "experiment=evil_job"], "hydra.sweeper.params"),
    "ray-runtime": (["hydra/launcher=ray_gpu", "+hydra.launcher.ray.init.runtime_env.setup=x"], "ray.init.runtime_env"),
    "ray-remote": (
        ["hydra/launcher=ray_gpu", "+hydra.launcher.ray.remote.runtime_env={py: x}"],
        "ray.remote.runtime_env",
    ),
    "slurm-setup": ([SLURM, "hydra.launcher.setup=['touch CANARY']"], "hydra.launcher.setup"),
    "slurm-parameters": (
        [SLURM, "+hydra.launcher.additional_parameters.wrap=x"],
        "hydra.launcher.additional_parameters",
    ),
    "slurm-python": ([SLURM, "+hydra.launcher.python='touch CANARY;'"], "hydra.launcher.python"),
    "slurm-srun": ([SLURM, "+hydra.launcher.srun_args=['--prolog=CANARY']"], "hydra.launcher.srun_args"),
    "slurm-line": ([SLURM, "hydra.launcher.partition='a\ntouch CANARY'"], r"hydra.launcher.partition='a\ntouch"),
    "slurm-name": ([SLURM, "hydra.launcher.name='$(touch CANARY)'"], "hydra.launcher.name"),
    "slurm-folder": ([SLURM, "hydra.launcher.submitit_folder='/tmp/`touch CANARY`'"], "hydra.launcher.submitit_folder"),
    "local-setup": (["hydra/launcher=submitit_local", "+hydra.launcher.setup=[x]"], "hydra.launcher.setup"),
    # Logging
    "logging-factory": (
        ["+hydra.job_logging.handlers.x={\\(\\): builtins.open, file: CANARY, mode: w}"],
        "hydra.job_logging.handlers.x.()=builtins.open",
    ),
    "logging-hydra": (
        ["+hydra.hydra_logging.handlers.x={\\(\\): builtins.open, file: CANARY, mode: w}"],
        "hydra.hydra_logging.handlers.x.()=builtins.open",
    ),
    "logging-formatter": (["+hydra.job_logging.formatters.x={\\(\\): evil.touch}"], "formatters.x.()=evil.touch"),
    "logging-formatter-class": (["+hydra.job_logging.formatters.x={class: evil.touch}"], "formatters.x.class"),
    "logging-filter": (["+hydra.job_logging.filters.x={\\(\\): evil.touch}"], "hydra.job_logging.filters"),
    "logging-class": (
        ["hydra.job_logging.handlers.console.class=evil.Handler"],
        "handlers.console.class='evil.Handler'",
    ),
    "logging-external": (["hydra.job_logging.handlers.console.stream='ext://evil.value'"], "handlers.console.stream"),
    "logging-format": (["hydra.hydra_logging.formatters.simple.format='ext://evil.value'"], "formatters.simple.format"),
    "logging-level": (["hydra.job_logging.root.level='ext://evil.value'"], "hydra.job_logging.root.level"),
    "logging-reference": (["+hydra.job_logging.handlers.console.level='cfg://formatters'"], "handlers.console.level"),
    "logging-interpolated": (
        ["tracking.run_name=evil.Handler", "hydra.job_logging.handlers.console.class=${tracking.run_name}"],
        "handlers.console.class='${tracking.run_name}'",
    ),
    "logging-file": (
        ["hydra.job_logging.handlers.file.filename=VICTIM", "+hydra.job_logging.handlers.file.mode=w"],
        "handlers.file.filename",
    ),
    "logging-file-up": (
        ["hydra.job_logging.handlers.file.filename='${hydra.runtime.output_dir}/../../../../victim'"],
        "handlers.file.filename",
    ),
    "logging-option": (["hydra/job_logging=evil"], "hydra.job_logging.handlers.x.()=evil.touch"),
    "logging-path": (["experiment=evil_path"], "handlers.file.filename=PosixPath"),
    "logging-bytes": (["experiment=evil_bytes"], "handlers.file.filename=b'"),
    "logging-all": (["+evil={version: 1}", "hydra.job_logging='${evil}'"], "hydra.job_logging=${evil}"),
    "job-name": (["hydra.job.name=../../../victim"], "hydra.job.name='../../../victim'"),
    # Search paths and files that are read
    "search-package": (["hydra.searchpath=[pkg://evil]"], "hydra.searchpath=pkg://evil: expected folders"),
    "search-module": (["hydra.searchpath=[structured://evil]"], "hydra.searchpath=structured://evil"),
    "search-other": (["hydra.searchpath=[zip://evil]"], "hydra.searchpath=zip://evil"),
    "search-primary": (["--config-name", "evil_search"], "hydra.searchpath=pkg://evil"),
    "search-interpolated": (["--config-name", "evil_search_later"], "hydra.searchpath=structured://evil"),
    "path-package": (["--config-path", "pkg://evil"], "--config-path=pkg://evil"),
    "path-relative": (["-cp", "../evil"], "--config-path=../evil: expected the absolute path of a folder"),
    "path-file": (["--config-pa=VICTIM"], "--config-path="),
    "rerun": (["--experimental-rerun", PICKLE], "--experimental-rerun="),
    "rerun-short": ([f"--exp={PICKLE}"], "--experimental-rerun="),
    "other-tree": (["--config-name", "evil_tree"], "--config-name=evil_tree"),
    "yaml-object": (["experiment=evil_yaml"], "could not determine a constructor"),
    "yaml-name": (["experiment=evil_name"], "could not determine a constructor"),
    "hydra-replaced": (["--config-name", "evil_hydra"], "hydra"),
    # Variables of the environment
    "set-variable": (["+hydra.job.env_set.LD_PRELOAD=CANARY"], "hydra.job.env_set"),
    "set-variables": (["+evil.X=y", "hydra.job.env_set='${evil}'"], "hydra.job.env_set"),
    "copy-variable": (["hydra.job.env_copy=[HF_TOKEN]"], "hydra.job.env_copy"),
    "variable": (
        ["workload.prompt_text=${oc.env:HF_TOKEN}"],
        "workload.prompt_text=${oc.env:HF_TOKEN}: expected an environment variable that begins with GPTBENCH_",
    ),
    "variable-default": (["tracking.run_name=${oc.env:HF_TOKEN,x}"], "tracking.run_name=${oc.env:HF_TOKEN,x}"),
    "variable-within": (["tracking.uri='http://${oc.env:HF_TOKEN}'"], "tracking.uri=http://${oc.env:HF_TOKEN}"),
    "variable-composed": (
        ["workload.prompt_text=HF", "tracking.run_name='${oc.env:${workload.prompt_text}_TOKEN}'"],
        "tracking.run_name=${oc.env:${workload.prompt_text}_TOKEN}",
    ),
    "variable-decoded": (["tracking.run_name='${oc.decode:\"\\${oc.env:HF_TOKEN}\"}'"], "tracking.run_name"),
    "variable-later": (["+sampling.x='${oc.env:HF_TOKEN}'"], "sampling.x=${oc.env:HF_TOKEN}"),
    "variable-folder": (["hydra.run.dir=outputs/${oc.env:HF_TOKEN}"], "hydra.run.dir=outputs/${oc.env:HF_TOKEN}"),
    "variable-option": (["experiment=evil_option"], "${oc.env:HF_TOKEN}: expected a value that can be resolved"),
    "variables": (["workload.prompt_file=/proc/self/environ"], "workload.prompt_file=/proc/self/environ"),
    "variables-linked": (["task=quality", "task.text_file=FOLDER/link"], "task.text_file="),
    "variables-later": (
        ["workload.prompt_file='${hydra:runtime.cwd}/../../../../../proc/self/environ'"],
        "workload.prompt_file=${hydra:runtime.cwd}",
    ),
    # Folders that lead elsewhere
    "subfolder": (["hydra.output_subdir=../../.."], "hydra.output_subdir"),
    "job-folder": (["-m", "hydra.sweep.subdir=../../../x"], "hydra.sweep.subdir=../../../x"),
    "job-folder-elsewhere": (["-m", "+evil='${hydra.sweep}'", "hydra.sweep.subdir=../x"], "hydra.sweep.subdir=../x"),
    "job-folder-other": (["-m", "+evil.subdir=../x", "hydra.sweep='${evil}'"], "hydra.sweep"),
    "job-mode": (["-m", "+hydra.sweep.mode=777"], "hydra.sweep.mode=777"),
    "job-folder-absolute": (["-m", "hydra.sweep.subdir=FOLDER/x"], "hydra.sweep.subdir="),
}

FILES = {
    "experiment/evil_target": "# @package _global_\nmodel: {_target_: evil.touch}\n",
    "experiment/evil_callback": f"# @package _global_\nhydra: {{callbacks: {{x: {OPEN}}}}}\n",
    "experiment/evil_launcher": "# @package _global_\ndefaults: [override /hydra/launcher: submitit_slurm]\n"
    "hydra: {launcher: {setup: [touch CANARY]}}\n",
    "experiment/evil_params": "# @package _global_\ndefaults: [override /hydra/sweeper: basic]\n"
    "hydra: {sweeper: {params: {tracking._target_: evil.touch}}}\n",
    "experiment/evil_job": "# @package _global_\n"
    "hydra: {sweeper: {params: {+hydra.callbacks.x: '{_target_: evil.Callback}'}}}\n",
    "experiment/evil_yaml": "# @package _global_\noutputs: !!python/object/apply:os.system ['touch CANARY']\n",
    "experiment/evil_name": "# @package _global_\noutputs: !!python/name:evil.touch\n",
    "experiment/evil_option": "# @package _global_\ndefaults: [override /model: '${oc.env:HF_TOKEN}']\n",
    "experiment/evil_path": "# @package _global_\nhydra: {job_logging: {handlers: {file: "
    "{filename: !!python/object/apply:pathlib.Path [VICTIM], mode: w}}}}\n",
    "experiment/evil_bytes": "# @package _global_\nhydra: {job_logging: {handlers: {file: "
    f"{{filename: !!binary {b64encode(b'victim').decode()}, mode: w}}}}}}}}\n",
    "hydra/callbacks/evil": "x: {_target_: evil.Callback}\n",
    "hydra/job_logging/evil": "version: 1\nhandlers: {console: {class: logging.StreamHandler}, x: {(): evil.touch}}\n"
    "root: {handlers: [x]}\n",
    "evil_search": "defaults: [config, _self_]\nhydra: {searchpath: ['pkg://evil']}\n",
    "evil_search_later": "defaults: [config, _self_]\nscheme: structured\nhydra: {searchpath: ['${scheme}://evil']}\n",
    "evil_tree": "model: {_target_: evil.touch}\n",
    "evil_hydra": "defaults: [config, _self_]\nhydra: '${evil}'\nevil: {callbacks: {x: {_target_: evil.Callback}}}\n",
}


def prepare(machine: Machine) -> list[str]:
    """Hostile files, and the option that makes Hydra look for them."""
    for name, content in FILES.items():
        path = machine.folder / "conf" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(machine.text(content))
    (machine.folder / "evil.pickle").write_bytes(pickle.dumps(Runs(open, str(machine.canary), "w")))
    (machine.folder / "link").symlink_to("/proc/self/environ")
    return ["--config-dir", str(machine.folder / "conf")]


class Runs:
    """What a malicious pickle does: unpickling it calls what it names."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("case", CASES)
def test_a_hostile_configuration_is_refused_and_executes_nothing(case: str, machine: Machine) -> None:
    arguments, told = CASES[case]
    option = prepare(machine)
    before, environment = machine.files(), dict(os.environ)
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- as `main`, which takes whatever Hydra raises
        machine.run([*option, *arguments])
    assert told in explain(caught.value)
    assert not any(f"5ecret-{name}" in str(caught.value) for name in SECRETS)
    assert not machine.harmed()
    assert machine.files() == before
    assert dict(os.environ) == environment
    assert machine.jobs == []


FIRING = (
    *("callback", "callback-builtin", "callback-option", "callback-experiment", "callback-swept", "launcher-nested"),
    *("sweeper-nested", "logging-factory", "logging-hydra", "logging-formatter", "logging-class", "logging-external"),
    *("logging-file", "logging-path", "logging-bytes", "logging-option", "search-package", "search-module"),
    *("search-primary", "path-package", "rerun"),
)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", FIRING)
def test_without_the_guard_the_same_is_executed(case: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the test above would show nothing."""
    monkeypatch.setattr(internals, "ConfigLoaderImpl", ConfigLoaderImpl)
    option = prepare(machine)
    with contextlib.suppress(Exception, RaisedError):
        machine.run([*option, *CASES[case][0]], guarded=False)
    assert machine.harmed()


def test_without_the_guard_a_secret_reaches_the_job(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internals, "ConfigLoaderImpl", ConfigLoaderImpl)
    OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    machine.run(CASES["variable"][0], guarded=False)
    assert machine.jobs[0].workload.prompt_text == "5ecret-HF_TOKEN"


PASSING = {
    **{f"job_logging-{name}": [f"hydra/job_logging={name}"] for name in ("default", "stdout", "none", "disabled")},
    **{
        f"hydra_logging-{name}": [f"hydra/hydra_logging={name}"]
        for name in ("default", "none", "disabled", "hydra_debug")
    },
    "logging-file": [
        "hydra.job_logging.handlers.file.filename='${hydra.runtime.output_dir}/own-${hydra.job.name}.log'"
    ],
    "folder": ["hydra.searchpath=[file:///tmp, conf]"],
    "subfolders": ["hydra.output_subdir=null", "hydra.sweep.subdir='${hydra.job.override_dirname}/${hydra.job.num}'"],
    "variables": [
        "workload.prompt_text=${oc.env:HOME}",
        "tracking.run_name='${oc.env:GPTBENCH_NAME,none} ${oc.env:USER,me}'",
    ],
    "name": ["hydra.job.name=${model.name}"],
    "ray": [
        "hydra/launcher=ray_gpu",
        "++hydra.launcher.ray.init={address: 'ray://head:10001', num_gpus: 8, _temp_dir: /scratch/ray}",
        "++hydra.launcher.ray.remote={num_gpus: 1, resources: {H100: 0.5}}",
    ],
    "slurm": [
        SLURM,
        "hydra.launcher.partition='a100|h100'",
        "hydra.launcher.gres='gpu:h100:1'",
        "hydra.launcher.constraint='[rack1|rack2]&nvlink'",
        "hydra.launcher.exclude='node[01-04],node7'",
        "hydra.launcher.comment='a run of the week'",
        "hydra.launcher.mem_per_gpu=80GB",
        "hydra.launcher.name=${model.name}",
        "hydra.launcher.submitit_folder=/scratch/me/.submitit/%j",
    ],
    "local": ["hydra/launcher=submitit_local", "hydra.launcher.gpus_per_node=1"],
}
"""Settings that are of use, and run nothing."""


@pytest.mark.parametrize("case", PASSING)
def test_what_runs_nothing_passes(case: str, composing: None) -> None:
    if case in ("ray", "slurm", "local"):
        pytest.importorskip(
            "hydra_plugins.hydra_ray_launcher" if case == "ray" else "hydra_plugins.hydra_submitit_launcher"
        )
    composed = compose("config", PASSING[case], return_hydra_config=True)
    assert isinstance(load(without_hydra(composed)), Config)


def test_jobs_of_a_sweep_pass(machine: Machine) -> None:
    machine.run(["-m", "sampling.top_k=5,6", "workload.prompt_text=${oc.env:HOME}", "tracking=none"])
    assert [job.sampling.top_k for job in machine.jobs] == [5, 6]


def without_hydra(composed: DictConfig) -> DictConfig:
    with open_dict(composed):
        del composed["hydra"]
    return composed


def test_what_was_checked_is_what_is_used(composing: None) -> None:
    """Launcher and sweeper hold no interpolation that could become something else later."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    composed = compose("config", [*PASSING["slurm"], "hydra.job.name=${model.name}"], return_hydra_config=True)
    for name in ("launcher", "sweeper", "job.name"):
        part = OmegaConf.to_container(OmegaConf.create({"x": OmegaConf.select(composed.hydra, name)}), resolve=False)
        assert "${" not in str(part)
    assert composed.hydra.launcher.name == "demo"


def test_a_hydra_that_the_guard_does_not_reach_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version may have other names for what is replaced; then nothing must be composed."""
    guard.verify.cache_clear()
    install()
    guard.verify.cache_clear()

    def unguarded(name: str, path: ConfigSearchPath) -> internals.Hydra:
        return internals.Hydra(name, ConfigLoaderImpl(path))

    with monkeypatch.context() as patched:
        patched.setattr(internals.Hydra, "create_main_hydra2", unguarded)
        with pytest.raises(UserError, match=r"^hydra-core 1\.3\.\d+: gptbench cannot guard this version"):
            install()
    with monkeypatch.context() as patched:
        patched.setattr(refusal, "check_value", lambda *_: None)
        with pytest.raises(UserError, match=r"cannot guard this version"):
            install()


def test_variables_have_defaults_as_in_omegaconf(monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    install()
    monkeypatch.delenv("GPTBENCH_NAME", raising=False)
    config = OmegaConf.create({"a": "${oc.env:GPTBENCH_NAME,null}", "b": "${oc.env:GPTBENCH_NAME,3}"})
    config.c = "${oc.env:GPTBENCH_NAME}"
    assert (config.a, config.b) == (None, "3")
    with pytest.raises(InterpolationResolutionError, match="Environment variable 'GPTBENCH_NAME' not found"):
        print(config.c)
    monkeypatch.setenv("GPTBENCH_NAME", "x")
    assert (config.a, config.b, config.c) == ("x", "x", "x")


def process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with secrets in its environment."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder / 'modules'}"}
    environment.pop("HYDRA_FULL_ERROR", None)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_a_worker_that_unpickles_the_loader_has_the_guard(machine: Machine) -> None:
    """As Ray's and Slurm's do, which import nothing of ours before."""
    (machine.folder / "loader").write_bytes(pickle.dumps(GuardedLoader(create_config_search_path(str(conf_folder())))))
    code = """
import pickle
from hydra.types import RunMode
from omegaconf import OmegaConf
from gptbench.config import register
register()
with open("loader", "rb") as file:
    loader = pickle.load(file)
for override in ("tracking._target_=os.system", "tracking.run_name=${oc.env:HF_TOKEN}"):
    try:
        loader.load_configuration("config", [override], RunMode.RUN)
    except ValueError as error:
        print(error)
print(OmegaConf.create(["${oc.env:HF_TOKEN}"])[0])
"""
    done = process(machine.folder, "-c", code)
    assert "tracking._target_=os.system" in done.stdout
    assert "tracking.run_name=${oc.env:HF_TOKEN}: expected" in done.stdout
    assert "oc.env=HF_TOKEN" in done.stderr
    assert "5ecret" not in done.stdout + done.stderr


def add_to(file: Path, **values: Any) -> None:
    """Keys in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def hostile_checkpoint(machine: Machine) -> Path:
    """The demo model with every way in which the transformers library can be told to import something, and the file
    with it."""
    folder = machine.folder / "checkpoint"
    shutil.copytree(shipped_folder() / "demo", folder)
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    code = {
        "auto_map": dict.fromkeys(names, "evil.touch"),
        "custom_pipelines": {"x": {"impl": "evil.touch"}},
        "tokenizer_class": "evil.touch",
        "processor_class": "evil.touch",
        "_target_": "evil.touch",
        "torch_dtype": "evil.value",
        "trust_remote_code": True,
        "_name_or_path": "evil",
    }
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        add_to(folder / name, **code)
    shutil.copytree(machine.folder / "modules" / "evil", folder / "evil")
    for name in ("modeling_evil.py", "tokenization_evil.py", "evil.py", "__init__.py", "conftest.py"):
        (folder / name).write_text(EVIL)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(open, str(machine.canary), "w")))
    (folder / "training_args.bin").write_bytes(pickle.dumps(Runs(open, str(machine.canary), "w")))
    return folder


def test_nothing_that_a_checkpoint_names_is_imported(machine: Machine) -> None:
    from gptbench.build import on_meta
    from gptbench.checkpoint import Checkpoint
    from gptbench.device import Device

    folder = hostile_checkpoint(machine)
    before = machine.files()
    machine.run(["model=auto", f"model.checkpoint={folder}", "device=cpu", "workload.new_tokens=4"])
    (config,) = machine.jobs
    tokenizer = make_tokenizer(config.model)
    assert tokenizer is not None and tokenizer.encode("Once upon a time")
    device = Device(config.device)
    checkpoint = Checkpoint(config.model)
    checkpoint.check(on_meta(config.model, config.quant, device.dtype))
    for file in checkpoint.files:
        assert all(tensor.isfinite().all() for _, tensor in checkpoint.read(file, device.torch))
    add_to(folder / "tokenizer.json", auto_map={"AutoTokenizer": "evil.touch"})
    with pytest.raises(UserError, match="cannot read"):
        make_tokenizer(config.model)
    assert not machine.harmed()
    assert machine.files() == before


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json", "model.safetensors"])
def test_a_checkpoints_link_to_a_secret_tells_nothing_of_it(name: str, machine: Machine) -> None:
    """Links are allowed: the library's download folder is made of them."""
    from gptbench.checkpoint import Checkpoint

    folder = machine.folder / "checkpoint"
    shutil.copytree(shipped_folder() / "demo", folder)
    (machine.folder / "credentials").write_text("5ecret-of-the-user = 3\n" * 100)
    (folder / name).unlink()
    (folder / name).symlink_to(machine.folder / "credentials")

    def read() -> None:
        config = load(without_hydra(compose_in(machine, ["model=auto", f"model.checkpoint={folder}"])))
        make_tokenizer(config.model)
        Checkpoint(config.model)

    with pytest.raises(UserError) as caught:
        read()
    assert name in str(caught.value)
    assert "5ecret-of-the-user" not in str(caught.value)


@pytest.mark.parametrize("place", ["../victim", "/proc/self/environ", "FOLDER/victim", "..", "sub/../../victim"])
def test_an_index_names_files_of_its_folder_only(place: str, machine: Machine) -> None:
    from gptbench.checkpoint import Checkpoint

    folder = machine.folder / "checkpoint"
    shutil.copytree(shipped_folder() / "demo", folder)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"model.norm.weight": machine.text(place)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = load(without_hydra(compose_in(machine, ["model=auto", f"model.checkpoint={folder}"])))
    with pytest.raises(UserError, match="is not in the checkpoint's folder"):
        Checkpoint(config.model)


def compose_in(machine: Machine, overrides: list[str]) -> DictConfig:
    """As `gptbench.__main__` does, without a job."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return compose("config", overrides, return_hydra_config=True)


TARGET = {"_target_": "builtins.open", "file": "CANARY", "mode": "w"}


@pytest.mark.parametrize(
    "content",
    [
        {"a": TARGET},
        {"a": {"rows": 4, "block": 512, "warps": 1, "preload": TARGET}},
        {"a": {"rows": "__import__('evil')", "block": 512, "warps": 1, "preload": 1}},
        {"a": {"rows": 4, "block": 512, "warps": 1, "preload": 1, "__class__": "evil"}},
        {"__init__": {"__globals__": 1}},
        [TARGET],
    ],
)
def test_hostile_tiles_are_refused(content: Any, machine: Machine) -> None:
    pytest.importorskip("triton")
    from gptbench.engine.tile_cache import TileCache

    path = TileCache(machine.folder / "tiles", "h100").path
    path.parent.mkdir()
    path.write_text(machine.text(json.dumps(content)))
    with pytest.raises(UserError, match="expected tiles as engine"):
        TileCache(machine.folder / "tiles", "h100")
    assert not machine.harmed()


@pytest.mark.parametrize("file", ["roof", "tiles"])
def test_a_pickle_in_the_place_of_a_kept_file_is_not_unpickled(file: str, machine: Machine) -> None:
    content = pickle.dumps(Runs(open, str(machine.canary), "w"), 0)
    if file == "roof":
        (machine.folder / "roof.json").write_bytes(content)
        assert measurements(machine.folder / "roof.json") == []
    else:
        pytest.importorskip("triton")
        from gptbench.engine.tile_cache import TileCache

        path = TileCache(machine.folder, "h100").path
        path.write_bytes(content)
        with pytest.raises(UserError):
            TileCache(machine.folder, "h100")
    assert not machine.harmed()


@pytest.mark.parametrize("field", ["environment", "_target_", "__class__"])
def test_a_hostile_roof_counts_as_none(field: str, machine: Machine) -> None:
    roof = asdict(made_result().roof)
    path = machine.folder / "roof.json"
    for wrapped in (lambda one: one, lambda one: {"measurements": [one]}):
        path.write_text(json.dumps(wrapped(roof)))
        assert len(measurements(path)) == 1
        path.write_text(machine.text(json.dumps(wrapped(roof | {field: TARGET}))))
        assert measurements(path) == []
    assert not machine.harmed()


def test_loading_a_hostile_cache_file_unpickles_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it holds is code for a later run, as `gptbench cache` says; loading it runs none."""
    from gptbench.engine.compile_cache import LocalCaches, load, save

    def caches(name: str) -> Path:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(machine.folder / name / "inductor"))
        monkeypatch.setenv("TRITON_CACHE_DIR", str(machine.folder / name / "triton"))
        return machine.folder / name

    there = caches("there")
    content = pickle.dumps(Runs(open, str(machine.canary), "w"))
    for name in ("inductor/fxgraph/ab/entry", "inductor/aotautograd/x", "triton/X/kernel.json", "inductor/a/evil.py"):
        (there / name).parent.mkdir(parents=True, exist_ok=True)
        (there / name).write_bytes(content if not name.endswith(".py") else EVIL.encode())
    save(machine.folder / "cache.zip", there / "outputs")
    here = caches("here")
    load(machine.folder / "cache.zip", LocalCaches(here / "outputs"))
    assert (here / "inductor" / "fxgraph" / "ab" / "entry").read_bytes() == content
    assert not machine.harmed()
    pickle.loads(content)
    assert machine.harmed(), "it would"


def test_of_a_record_nothing_is_built_but_its_tracking(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    from gptbench.commands import sync
    from gptbench.record import tracking

    logged: list[Any] = []
    monkeypatch.setattr(tracking.MLflowTracker, "log", lambda self, result, path: logged.append(self.config))
    result = made_result(tracking=dict(TARGET))
    for group in result.config.values():
        if isinstance(group, dict):
            group["_target_"] = "evil.touch"
    path = result.save(machine.folder)
    assert sync.log_command([str(path)]) == 0
    assert [type(config) for config in logged] == [MLflowConfig]
    assert logged[0].uri is None
    result.config["tracking"] = {"_target_": MLflowConfig.TARGETS[0], "name": "mlflow", **TARGET}
    result.config["tracking"]["_target_"] = MLflowConfig.TARGETS[0]
    with pytest.raises(UserError, match="no usable tracking section"):
        sync.log_command([str(result.save(machine.folder))])
    assert not machine.harmed()


@pytest.mark.parametrize("case", ["callback-builtin", "rerun-short"])
def test_the_command_line_refuses_in_one_line(case: str, machine: Machine) -> None:
    arguments, told = CASES[case]
    option = prepare(machine)
    before = machine.files()
    done = process(machine.folder, "-m", "gptbench", *option, *map(machine.text, arguments))
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert not machine.harmed()
    assert machine.files() == before


def test_no_secret_of_the_environment_and_no_password_reaches_the_record(machine: Machine, empty_store: Path) -> None:
    """A whole run of a hostile checkpoint, with MLflow's store: every file is searched, and what is printed."""
    (machine.folder / "outputs").mkdir()
    shutil.copy(empty_store, machine.folder / "outputs" / "mlflow.db")
    model = ["model=auto", f"model.checkpoint={hostile_checkpoint(machine)}", "device=cpu", "engine=eager"]
    short = ["workload.prompt=[1,2,3]", "workload.new_tokens=4", "workload.samples=1", "tracking.figures=false"]
    done = process(machine.folder, "-m", "gptbench", *model, *short, "baseline.device=ftp://me:5ecret@host")
    assert done.returncode == 0, done.stderr
    files = [path for path in (machine.folder / "outputs").rglob("*") if path.is_file()]
    assert {"result.json", "mlflow.db", "overrides.yaml", "hydra.yaml"} <= {path.name for path in files}
    assert not [path for path in files if b"5ecret" in path.read_bytes()]
    assert "5ecret" not in done.stdout + done.stderr
    assert not machine.harmed()
