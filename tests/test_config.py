"""Configuration: everything that is shipped composes; every mistake is told with field, value and choices."""

import ast
import contextlib
import copy
import itertools
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gptbench import config as schemas
from gptbench.base.errors import UserError
from gptbench.base.paths import conf_folder
from gptbench.config import Config, Section, explain, load

GROUPS = sorted(path.name for path in conf_folder().iterdir() if path.is_dir())
OPTIONS = [f"{group}={file.stem}" for group in GROUPS for file in sorted((conf_folder() / group).glob("*.yaml"))]


pytestmark = pytest.mark.usefixtures("composing")


def composed(*overrides: str) -> Config:
    return load(compose("config", list(overrides)), overrides)


def refusal(*overrides: str, tree: DictConfig | None = None) -> str:
    """What the user is told.

    Args:
        tree: what Hydra composed; None composes it.
    """
    with pytest.raises((UserError, HydraException)) as caught:
        load(compose("config", list(overrides)) if tree is None else tree, overrides)
    return explain(caught.value)


def test_groups_are_those_of_the_issue() -> None:
    assert set(GROUPS) == {
        *("model", "quant", "sampling", "device", "engine", "workload", "task", "tracking", "experiment", "baseline"),
        *("sweep", "hydra"),
    }


@pytest.mark.parametrize("option", OPTIONS)
def test_every_shipped_option_composes(option: str) -> None:
    new_tokens = "workload.new_tokens=50"  # stories15m has a context of 256
    group, name = option.split("=")
    if option == "model=auto":
        new_tokens = "model.checkpoint=${gptbench.shipped:demo}"
        name = "demo"
    if option == "workload=gpt_fast":
        new_tokens = "model=stories15m"  # the demo model has fewer tokens
    config = composed(option, new_tokens)
    if group != "experiment":
        assert getattr(config, group).name == name


@pytest.mark.parametrize(
    "file", sorted(conf_folder().glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_yaml_files_hold_values_only_and_few(file: Path) -> None:
    text = file.read_text()
    recorded = text.startswith("# gptbench gate --record ")  # as many as there are metrics, and edited by nobody
    assert recorded or len(text.splitlines()) <= 20


@pytest.mark.parametrize("name", [path.stem for path in (conf_folder() / "experiment").glob("*.yaml")])
def test_experiments_name_their_command(name: str) -> None:
    lines = (conf_folder() / "experiment" / f"{name}.yaml").read_text().splitlines()
    assert lines[:2] == ["# @package _global_", f"# python -m gptbench experiment={name}"]


def test_the_seeds_three_rows() -> None:
    rows = {
        "llama2_7b_bf16": ("llama2_7b", "none", 32),
        "llama2_7b_int8": ("llama2_7b", "int8", 32),
        "mixtral_8x7b_int8": ("mixtral_16l", "int8", 16),
    }
    for experiment, expected in rows.items():
        config = composed(f"experiment={experiment}")
        assert (config.model.name, config.quant.name, config.model.n_layers) == expected
        assert config.engine.fresh_cache
        assert config.engine.measure_warm_start
        assert config.workload.prompt == [1, 15043, 29892, 590, 1024, 338]
        assert (config.workload.new_tokens, config.workload.samples, config.workload.seed) == (200, 5, 1234)
        assert (config.sampling.temperature, config.sampling.top_k) == (0.8, 200)
    assert composed("experiment=mixtral_8x7b_int8", "model=mixtral").model.n_layers == 32, "the command line wins"


def test_the_seeds_nine_targets() -> None:
    targets = composed("baseline=a100_40gb").baseline.targets
    rows = {name: tuple(row.values()) for name, row in targets.items()}
    kernels = {name: row for name, row in rows.items() if len(row) == 1}
    assert {name: row for name, row in rows.items() if name not in kernels} == {
        "llama2_7b/bfloat16": (94, 1253, 162),
        "llama2_7b/int8": (144, 957, 172),
        "mixtral_16l/int8": (175, 1130, 162),
    }
    assert kernels == {
        "gemv/int8": (870,),
        "gemv/bfloat16": (990,),
        "gather_gemv/int8": (990,),
        "gather_gemv/bfloat16": (1060,),
        "layer_norm/bfloat16": (950,),
        "mlp_layer_norm_gelu/bfloat16": (0.8,),
    }


REFUSED = {
    # what is given: what must be told
    "quant=int9": ["quant/int9", "int8", "none"],
    "model=gpt5": ["model/gpt5", "llama2_7b", "mixtral"],
    "sampling.tmp=3": ["sampling.tmp", "temperature, top_k, top_p, stop_tokens"],
    "engine.foo=1": ["engine.foo", "fresh_cache, measure_warm_start"],
    "nothing=1": ["nothing", "model, quant"],
    "+nothing=1": ["nothing", "no such field", "model, quant"],
    "+model.depth=3": ["model.depth", "no such field", "n_layers"],
    "sampling.top_k=many": ["sampling.top_k", "many", "Integer"],
    "sampling.top_k=1.5": ["sampling.top_k", "1.5", "Integer"],
    "sampling.top_k=0": ["sampling.top_k=0", "at least 1"],
    "sampling.top_k=-3": ["sampling.top_k=-3", "at least 1"],
    "model=stories110m sampling.top_k=32001": ["sampling.top_k=32001", "vocab_size=32000"],
    "sampling.temperature=-0.1": ["sampling.temperature=-0.1", "0 (greedy) to 1e30"],
    "sampling.temperature=nan": ["sampling.temperature=nan", "0 (greedy) to 1e30"],
    "sampling.temperature=1e39": ["sampling.temperature=1e+39", "0 (greedy) to 1e30"],
    "sampling.top_p=0": ["sampling.top_p=0.0", "1e-30 to 1"],
    "sampling.top_p=1e-46": ["sampling.top_p=1e-46", "1e-30 to 1"],
    "sampling.top_p=1.5": ["sampling.top_p=1.5", "1e-30 to 1"],
    "model=stories110m sampling.stop_tokens=[2,32000]": ["sampling.stop_tokens=32000", "0 to 31999"],
    "sampling.stop_tokens=[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]": ["sampling.stop_tokens=[1", "at most 16"],
    "device.threads=100000": ["device.threads=100000", "a number from 1 to"],
    "device.dtype=float8": ["device.dtype", "float8", "float32, bfloat16, float16"],
    "device.kind=tpu": ["device.kind", "tpu", "auto, cpu, cuda"],
    "device.index=-1": ["device.index=-1", "at least 0"],
    "device.threads=0": ["device.threads=0", "a number from 1 to"],
    "engine=inductor engine.scope=layer": ["engine.scope", "layer", "model, block"],
    "engine=inductor engine.tuning=true": ["engine.tuning", "candidates, descent, none"],
    "workload.batch_size=0": ["workload.batch_size=0", "at least 1"],
    "workload.samples=0": ["workload.samples=0", "at least 1"],
    "workload.new_tokens=1": ["workload.new_tokens=1", "at least 2"],
    "model=stories110m workload=gpt_fast workload.new_tokens=1019": [
        "workload.new_tokens=1019",
        "at most 1018",
        "6 tokens",
    ],
    "workload.prompt_text=''": ["workload.prompt_text=", "some text, or null"],
    "workload.prompt_file=''": ["workload.prompt_file=", "some text, or null"],
    "workload.prompt_length=0": ["workload.prompt_length=0", "at least 1"],
    "workload.prompt_length=400": ["workload.new_tokens=200", "at most 112", "400 tokens", "512"],
    "workload.prompt=[1] workload.prompt_text=x": ["workload.prompt_text=x", "null beside workload.prompt"],
    "workload.prompt_text=x workload.prompt_file=y": ["workload.prompt_file=y", "null beside workload.prompt_text"],
    "workload.prompt=[1] workload.prompt_length=2": ["workload.prompt_length=2", "null beside workload.prompt"],
    "task=quality task.tokens=0": ["task.tokens=0", "at least 1"],
    "task=kernels task.sizes=[]": ["task.sizes=[]", "at least 1"],
    "task=kernels task.sizes=[0]": ["task.sizes=[0]", "at least 1"],
    "task=kernels task.replays=0": ["task.replays=0", "at least 1"],
    "task=kernels task.breakdown=true": ["task.breakdown=True", "false with task=kernels"],
    "task=quality task.words=3": ["task.words", "text_file, tokens, reference"],
    "model.weights=none": ["model.weights", "none", "auto, random"],
    "model.checkpoint_format=pickle": ["model.checkpoint_format", "safetensors, bin"],
    "model.head_dim=-2": ["model.head_dim=-2", "32, the value in"],
    "model=stories110m model.head_dim=63": ["model.head_dim=63", "an even number"],
    "model=stories110m model.sliding_window=-1": ["model.sliding_window=-1", "at least 0"],
    "model=auto": ["model.checkpoint=null", "the folder of a checkpoint"],
    "model=auto model.checkpoint=/nowhere": ["model.checkpoint=/nowhere", "no such folder"],
    "engine=hf engine.cache=paged": ["engine.cache", "paged", "static, dynamic"],
    "model=stories110m workload.prompt=[32000]": ["workload.prompt=32000", "0 to 31999"],
    "model=stories110m workload.prompt=[-1]": ["workload.prompt=-1", "0 to 31999"],
    "workload.seed=-1": ["workload.seed=-1", "0 to"],
    "model=stories110m model.n_heads=7": ["model.n_heads=7", "dim=768"],
    "model=stories110m model.n_kv_heads=5": ["model.n_kv_heads=5", "n_heads=12"],
    "model=stories110m model.n_layers=0": ["model.n_layers=0", "at least 1"],
    "model=stories110m model.n_experts=4": ["model.n_active_experts=0", "1 to n_experts=4"],
    "model=stories110m model.n_active_experts=2": ["model.n_active_experts=2", "n_experts=0"],
    "model=stories110m model.rope_theta=0": ["model.rope_theta=0", "over 0"],
    "model=stories110m model.norm_eps=-1": ["model.norm_eps=-1", "over 0"],
    "model=stories110m model.dim=???": ["model.dim", "a value"],
    "tracking.timeout_s=0": ["tracking.timeout_s=0", "over 0"],
    "tracking.retries=11": ["tracking.retries=11", "0 to 10"],
    "tracking.experiment=''": ["tracking.experiment=", "a name"],
    "sweep.timeout_s=5": ["sweep.timeout_s=5.0", "isolation=process"],
    "sweep.timeout_s=0 isolation=process": ["sweep.timeout_s=0.0", "over 0"],
    "sweep.paired=[sampling.top_k]": ["sweep.paired=['sampling.top_k']", "two or more swept overrides"],
    "sweep=random sweep.jobs=0": ["sweep.jobs=0", "at least 1"],
    "sweep=sobol sweep.seed=-1": ["sweep.seed=-1", "0 to"],
    "sweep.jobs=3": ["sweep.jobs", "paired, resume, timeout_s"],
    **{
        f"model=stories110m model.name={name}": ["model.name=", "a name of 1 to 100 printable characters"]
        for name in ("../../x", "a/b", "..", ".x", "x" * 101, "''", "'a\nb'")
    },
    "model=mixtral_tiny model.vocab_size=97 workload.prompt=[1]": [
        "sampling.top_k=200",
        "null",
        "sampling=default has",
    ],
    "model=stories110m workload.prompt_length=1100": ["workload.prompt_length=1100", "at most 1022"],
    "isolation=thread": ["isolation", "thread", "none, process"],
    "outputs=''": ["outputs=", "a folder"],
    **{
        f"{group}._target_={target}": [f"{group}._target_={target}", "expected one of gptbench."]
        for group, target in zip(
            ("model", "quant", "sampling", "device", "engine", "workload", "task", "tracking", "baseline", "sweep"),
            itertools.cycle(("os.system", "builtins.eval", "gptbench.execute.run.run")),
            strict=False,
        )
    },
    "workload.prompt_text='costs${5}'": ["workload.prompt_text=costs${5}", "'5' not found", "write \\${"],
    "workload.prompt_text=${b:c}": ["workload.prompt_text=${b:c}", "interpolation type b"],
    "workload.prompt_text=${hydra:runtime.cwd}": ["workload.prompt_text=${hydra:runtime.cwd}"],
    "model.name=${model.name}": ["model.name=${model.name}", "Recursive"],
    "device.dtype=${y}": ["device.dtype=${y}", "'y' not found"],
    "commit=${z}": ["commit=${z}", "'z' not found"],
    "~model": ["~model: a run needs the group model"],
    "~workload.samples": ["workload.samples", "deletion"],
    "model._target_=${oc.env:HOME}": ["model._target_=/", "expected one of gptbench."],
}


def edited(composed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A copy with other values of its fields, as Hydra sets them: in a tenth of the time that composing it again takes.

    Raises:
        OmegaConfBaseException: a field is not there, or does not hold such values.
    """
    tree = copy.deepcopy(composed)
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        OmegaConf.update(tree, override.key_or_group, override.value())
    return tree


def test_mistakes_are_told_with_field_value_and_choices() -> None:
    """Those that only `load` finds are tried on trees that were composed once, the others as they are typed."""
    trees: dict[tuple[str, ...], DictConfig] = {}
    loaded = 0
    for typed, parts in REFUSED.items():
        overrides = typed.split(" ")
        options = tuple(override for override in overrides if override.partition("=")[0] in GROUPS)
        tree = None
        if len(options) < len(overrides) and not any(text in typed for text in ("+", "~", "$", "_target_")):
            if options not in trees:
                trees[options] = compose("config", list(options))
            with contextlib.suppress(OmegaConfBaseException):  # Hydra finds it, too
                tree = edited(trees[options], overrides[len(options) :])
        told = refusal(*overrides, tree=tree)
        loaded += tree is not None
        assert all(part in told for part in parts), f"{typed}: {told}"
        assert "Traceback" not in told
    assert loaded > len(REFUSED) / 2


def test_rope_scaling_is_checked() -> None:
    assert "model.rope_scaling.factor=0" in refusal("model=llama3_2_1b", "model.rope_scaling.factor=0")
    told = refusal("model=llama3_2_1b", "model.rope_scaling.high_freq_factor=1")
    assert "low_freq_factor=1.0" in told


def sections() -> list[type[Section]]:
    return [
        value
        for value in vars(schemas).values()
        if isinstance(value, type) and issubclass(value, Section) and value.TARGETS
    ]


def test_every_listed_target_is_a_class_of_ours() -> None:
    targets = {target for section in sections() for target in section.TARGETS}
    assert targets
    for target in targets:
        assert target.startswith("gptbench.")
        assert isinstance(get_class(target), type)


def test_a_target_of_an_earlier_version_is_what_it_is_called_now() -> None:
    assert composed("task._target_=gptbench.measure.Speed").task._target_ == "gptbench.task.Speed"


def test_every_group_has_a_target_of_its_own_list() -> None:
    config = composed()
    for entry in fields(Config):
        section = getattr(config, entry.name)
        if is_dataclass(section):
            assert isinstance(section, Section)
            assert section._target_ in section.TARGETS


def test_every_field_has_a_docstring() -> None:
    """Meaning and unit stand below each field that a group holds."""
    undocumented = []
    files = sorted(Path(schemas.__file__).parent.glob("*.py"))
    for node in itertools.chain.from_iterable(ast.parse(file.read_text()).body for file in files):
        if not isinstance(node, ast.ClassDef) or node.name == "Config":  # whose fields are the groups
            continue
        for statement, following in itertools.pairwise([*node.body, ast.Pass()]):
            if isinstance(statement, ast.AnnAssign) and "ClassVar" not in ast.unparse(statement.annotation):
                is_text = isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant)
                if not is_text and ast.unparse(statement.target) != "_target_":
                    undocumented.append(f"{node.name}.{ast.unparse(statement.target)}")
    assert undocumented == []


def test_interpolated_environment_stays_out_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPTBENCH_COMMIT", "abc123")
    assert composed().commit == "abc123"
    monkeypatch.delenv("GPTBENCH_COMMIT")
    assert composed().commit is None


def test_changing_any_number_of_the_shipped_config_changes_the_tree() -> None:
    default: dict[str, Any] = {"sampling.top_k": 3, "workload.seed": 5, "model.rope_theta": 7.0, "outputs": "elsewhere"}
    for name, value in default.items():
        tree = OmegaConf.structured(composed("model=stories110m", f"{name}={value}"))
        assert OmegaConf.select(tree, name) == value
