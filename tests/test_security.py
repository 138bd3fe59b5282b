"""Hostile configurations, checkpoints, cache files and records: each is really tried, and nothing of it is executed.

What would be executed leaves a trace: it makes a file, changes or deletes one, or imports the package `evil`. The same
attempts with the guard taken away show that those traces would be seen.
"""

import json
import logging
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import compose
from hydra._internal import hydra as internals
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from gptbench.config import Config, MLflowConfig, explain, load, register
from gptbench.errors import ConfigError, UserError
from gptbench.guard import GuardedLoader, check_arguments, install, redact_files, redacted
from gptbench.paths import conf_folder, shipped_folder
from gptbench.prompt import make_tokenizer
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

    def job(self, composed: DictConfig) -> None:
        self.jobs.append(load(composed, HydraConfig.get().overrides.task))

    def run(self, arguments: list[str], guarded: bool = True) -> None:
        """As `gptbench.__main__` starts Hydra."""
        sys.argv[1:] = [self.text(argument) for argument in arguments]
        if guarded:
            check_arguments(sys.argv[1:])
        hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")(self.job)()

    def files(self) -> set[Path]:
        """All but what a run writes where it may."""
        return {path for path in self.folder.rglob("*") if "outputs" not in path.parts and "__pycache__" not in path.parts}

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
        monkeypatch.setenv(name, f"secret-{name}")
    monkeypatch.setattr(sys, "argv", ["gptbench"])
    register()
    install()
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
    "own-function": (["model._target_=gptbench.run.run"], "model._target_=gptbench.run.run"),
    "other-group": (["model._target_=gptbench.engine.Eager"], "model._target_=gptbench.engine.Eager"),
    "interpolated": (
        ["tracking.run_name=os.system", "model._target_=${tracking.run_name}"],
        "model._target_=os.system",
    ),
    "by-hydra": (["hydra.job.name=os.system", "model._target_=${hydra:job.name}"], "model._target_=${hydra:job.name}"),
    "nested": (["model=llama3_2_1b", "+model.rope_scaling._target_=os.system"], "model.rope_scaling._target_=os.system"),
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
    "swept": (["-m", "hydra/sweeper=basic", "model._target_=os.system,builtins.eval"], "model._target_=os.system"),
    "in-experiment": (["experiment=evil_target"], "model._target_=evil.touch"),
    "in-hydra": ([f"+hydra.help.x={OPEN}"], "hydra.help.x._target_=builtins.open"),
    # Callbacks
    "callback": (["+hydra.callbacks.x._target_=evil.Callback"], "hydra.callbacks"),
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
    "launcher-nested": (["-m", "hydra/sweeper=basic", f"+hydra.launcher.x={OPEN}"], "hydra.launcher.x._target_"),
    "launcher-elsewhere": (
        [f"+evil={{a: {BASIC}}}", "hydra.launcher=${evil}"],
        "hydra.launcher._target_=None: expected one of",
    ),
    "launcher-experiment": (["experiment=evil_launcher"], "hydra.launcher.setup"),
    "sweeper": (["-m", "hydra.sweeper._target_=evil.touch"], "hydra.sweeper._target_=evil.touch"),
    "sweeper-nested": (["-m", "hydra/sweeper=basic", f"+hydra.sweeper.x={OPEN}"], "hydra.sweeper.x._target_"),
    "sweeper-created": (
        ["-m", "hydra.sweeper.params='${oc.create:{_target_:os.remove,path:VICTIM}}'", "hydra/sweeper=basic"],
        "hydra.sweeper.params._target_=os.remove",
    ),
    "sweeper-params": (["-m", "experiment=evil_params"], "tracking._target_=evil.touch"),
    "ray-runtime": (["hydra/launcher=ray", "+hydra.launcher.ray.init.runtime_env.setup=x"], "ray.init.runtime_env"),
    "ray-remote": (["hydra/launcher=ray", "+hydra.launcher.ray.remote.runtime_env={py: x}"], "ray.remote.runtime_env"),
    "slurm-setup": ([SLURM, "hydra.launcher.setup=['touch CANARY']"], "hydra.launcher.setup"),
    "slurm-parameters": ([SLURM, "+hydra.launcher.additional_parameters.wrap=x"], "hydra.launcher.additional_parameters"),
    "slurm-python": ([SLURM, "+hydra.launcher.python='touch CANARY;'"], "hydra.launcher.python"),
    "slurm-srun": ([SLURM, "+hydra.launcher.srun_args=['--prolog=CANARY']"], "hydra.launcher.srun_args"),
    "slurm-line": ([SLURM, "hydra.launcher.partition='a\ntouch CANARY'"], r"hydra.launcher.partition='a\ntouch"),
    "slurm-name": ([SLURM, "hydra.launcher.name='$(touch CANARY)'"], "hydra.launcher.name"),
    "slurm-folder": ([SLURM, "hydra.launcher.submitit_folder='/tmp/`touch CANARY`'"], "hydra.launcher.submitit_folder"),
    "local-setup": (["hydra/launcher=submitit_local", "+hydra.launcher.setup=[x]"], "hydra.launcher.setup"),
    # Logging
    "logging-factory": (
        [f"+hydra.job_logging.handlers.x={{\\(\\): builtins.open, file: CANARY, mode: w}}"],
        "hydra.job_logging.handlers.x.()=builtins.open",
    ),
    "logging-hydra": (
        [f"+hydra.hydra_logging.handlers.x={{\\(\\): builtins.open, file: CANARY, mode: w}}"],
        "hydra.hydra_logging.handlers.x.()=builtins.open",
    ),
    "logging-formatter": (["+hydra.job_logging.formatters.x={\\(\\): evil.touch}"], "formatters.x.()=evil.touch"),
    "logging-formatter-class": (["+hydra.job_logging.formatters.x={class: evil.touch}"], "formatters.x.class"),
    "logging-filter": (["+hydra.job_logging.filters.x={\\(\\): evil.touch}"], "hydra.job_logging.filters"),
    "logging-class": (["hydra.job_logging.handlers.console.class=evil.Handler"], "handlers.console.class='evil.Handler'"),
    "logging-external": (["hydra.job_logging.handlers.console.stream='ext://evil.value'"], "handlers.console.stream"),
    "logging-format": (["hydra.hydra_logging.formatters.simple.format='ext://evil.value'"], "formatters.simple.format"),
    "logging-level": (["hydra.job_logging.root.level='ext://evil.value'"], "hydra.job_logging.root.level"),
    "logging-reference": (["hydra.job_logging.handlers.console.level='cfg://formatters'"], "handlers.console.level"),
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
    "variable-option": (["experiment=evil_option"], "Error resolving interpolation '${oc.env:HF_TOKEN}'"),
    "variables": (["workload.prompt_file=/proc/self/environ"], "workload.prompt_file=/proc/self/environ"),
    "variables-linked": (["task=quality", "task.text_file=FOLDER/link"], "task.text_file="),
    # Folders that lead elsewhere
    "subfolder": (["hydra.output_subdir=../../.."], "hydra.output_subdir"),
    "job-folder": (["-m", "hydra.sweep.subdir=../../../x"], "hydra.sweep.subdir=../../../x"),
    "job-folder-absolute": (["-m", "hydra.sweep.subdir=FOLDER/x"], "hydra.sweep.subdir="),
}

FILES = {
    "experiment/evil_target": "# @package _global_\nmodel: {_target_: evil.touch}\n",
    "experiment/evil_callback": f"# @package _global_\nhydra: {{callbacks: {{x: {OPEN}}}}}\n",
    "experiment/evil_launcher": "# @package _global_\ndefaults: [override /hydra/launcher: submitit_slurm]\n"
    "hydra: {launcher: {setup: [touch CANARY]}}\n",
    "experiment/evil_params": "# @package _global_\ndefaults: [override /hydra/sweeper: basic]\n"
    "hydra: {sweeper: {params: {tracking._target_: evil.touch}}}\n",
    "experiment/evil_yaml": "# @package _global_\noutputs: !!python/object/apply:os.system ['touch CANARY']\n",
    "experiment/evil_name": "# @package _global_\noutputs: !!python/name:evil.touch\n",
    "experiment/evil_option": "# @package _global_\ndefaults: [override /model: '${oc.env:HF_TOKEN}']\n",
    "hydra/callbacks/evil": "x: {_target_: evil.Callback}\n",
    "hydra/job_logging/evil": "version: 1\nhandlers: {console: {class: logging.StreamHandler}, x: {(): evil.touch}}\nroot: {handlers: [x]}\n",
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
    assert not any(f"secret-{name}" in str(caught.value) for name in SECRETS)
    assert not machine.harmed()
    assert machine.files() == before
    assert dict(os.environ) == environment
    assert machine.jobs == []


FIRING = (
    *("callback", "callback-builtin", "callback-option", "callback-experiment", "callback-swept", "launcher-nested"),
    *("sweeper-nested", "logging-factory", "logging-hydra", "logging-formatter", "logging-class", "logging-external"),
    *("logging-file", "logging-option", "search-package", "search-module", "search-primary", "search-interpolated"),
    *("path-package", "rerun", "rerun-short"),
)


@pytest.mark.parametrize("case", FIRING)
def test_without_the_guard_the_same_would_be_executed(
    case: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(internals, "ConfigLoaderImpl", ConfigLoaderImpl)
    option = prepare(machine)
    try:
        machine.run([*option, *CASES[case][0]], guarded=False)
    except BaseException as error:
        print(repr(error))
    assert machine.harmed()
