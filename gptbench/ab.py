"""Two configurations measured in turns, in one process: both engines are ready, and their samples alternate."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gptbench.compare.interleaved import HEADLINE, rows
from gptbench.compare.ratio import Ratio
from gptbench.config import Config, KernelsConfig, load
from gptbench.device import Device
from gptbench.errors import ConfigError, UserError
from gptbench.generate import Workload
from gptbench.measure.compilation import CompileWatch, prepare
from gptbench.measure.samples import Sample, take_sample, warm_up
from gptbench.measure.sensors import Sensor, sensor_of
from gptbench.measure.traffic import traffic
from gptbench.prompt import make_tokenizer, with_prompt
from gptbench.record.ab import BLOCK, AbResult, Side
from gptbench.reuse import give_back, release
from gptbench.run import beginning, make_engine, plan, with_engine
from gptbench.targets import instantiate, target
from gptbench.terminal import Stages

LEAST_BLOCKS = 6
"""Before the interval may end it: of fewer, it is narrow by chance too often."""
LEFT_OUT = {"engine.fresh_cache": "false", "engine.measure_warm_start": "false"}
"""What a configuration may ask for that has no place here: compile times are a single run's."""


@dataclass(frozen=True)
class Ending:
    """When it is enough."""

    half_width: float
    """Of the interval around the ratio of decode tokens/s."""
    budget_s: float
    """Seconds for the samples."""
    margin: float
    """Ratios nearer to 1 count as noise."""

    def __post_init__(self) -> None:
        for name in ("half_width", "budget_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')}", getattr(self, name), "a number over 0")
        if not self.margin >= 0:
            raise ConfigError("--margin", self.margin, "a number of at least 0")


@dataclass
class Asked:
    """A side, as it was asked for."""

    overrides: list[str]
    config: Config
    resolved: dict[str, Any]


def read(overrides: list[str], composed: DictConfig) -> Asked:
    """Validates a side.

    Raises:
        UserError: it cannot be, or measures something beside speed.
    """
    config = load(composed, overrides)
    config = with_prompt(config, make_tokenizer(config.model))
    task = config.task
    if isinstance(task, KernelsConfig) or task.name != "speed" or task.breakdown or task.energy:
        raise ConfigError("task", task.name, "speed, without breakdown and energy: A and B are compared by speed alone")
    resolved = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    assert isinstance(resolved, dict)
    return Asked(overrides, config, {str(key): value for key, value in resolved.items()})


class Contender:
    """A side that is ready to be sampled.

    Raises:
        UserError: it cannot run here, or does not fit beside what is there already.
    """

    def __init__(self, asked: Asked, watch: CompileWatch, leaving: ExitStack, stages: Stages) -> None:
        self.device: Device = instantiate(asked.config.device)
        config, resolved, _ = with_engine(asked.config, asked.resolved, self.device)
        target(config.engine).begin(config.engine, self.device)
        start = time.perf_counter()
        model = plan(config, self.device)
        leaving.callback(release, model, self.device)
        self.engine, _ = make_engine(config, self.device, model, stages.reading)
        leaving.callback(self.engine.release)
        self.device.synchronize()
        load_s = time.perf_counter() - start
        self.workload: Workload = instantiate(config.workload, self.device)
        self.sensor: Sensor = sensor_of(self.device)
        self.engine.tune()
        compilation = prepare(self.engine, watch, empty_cache=False)
        warm_up(self.engine, self.workload, watch, self.sensor)
        self.side = Side(
            overrides=asked.overrides,
            config=resolved,
            dtype=self.device.dtype_name,
            traffic=traffic(self.engine, self.workload.new_tokens),
            load_s=load_s,
            compilation=compilation,
        )

    def sample(self, number: int, watch: CompileWatch) -> Sample:
        """One more; the two sides' samples of the same number draw from the same seed."""
        self.device.use()
        seed = self.workload.config.seed + number
        taken = take_sample(self.engine, self.workload, seed, watch, self.sensor)
        self.side.samples.append(taken)
        return taken


def turns() -> Iterator[str]:
    """A B B A B A A B B A A B … (Thue and Morse's sequence): in each block of four, what drifts steadily cancels; over
    blocks, what bends does, too."""
    number = 0
    while True:
        yield "AB"[number.bit_count() % 2]
        number += 1


def measure(
    asked: tuple[Asked, Asked],
    ending: Ending,
    command: list[str],
    stages: Stages,
    told: Callable[[AbResult, Ratio], None] = lambda *_: None,
    ready_to_start: Callable[[dict[str, Contender]], None] = lambda _: None,
) -> AbResult:
    """Measures until the interval is narrow enough, the time is over, or Ctrl-C; whole blocks only.

    Args:
        told: is told of each block, outside any timed region.
        ready_to_start: is given both sides before the first sample: `scripts/ab_trials.py` slows one down here.

    Raises:
        UserError: one side cannot run, both do not fit together, or are for different devices.
        KeyboardInterrupt: before there was a whole block.
    """
    first = asked[0].config
    device: Device = instantiate(first.device)
    give_back()
    if len({(each.config.device.kind, each.config.device.index) for each in asked}) > 1:
        raise UserError(
            "device: A and B are on different devices, which do not drift alike; expected the same for both"
        )
    started, surroundings, roof = beginning(first, device, stages, again=first.device.measure_roof)
    with ExitStack() as leaving, CompileWatch() as watch:  # which ends before models go: that resets the compiler
        ready: dict[str, Contender] = {}
        for name, each in zip("AB", asked, strict=True):
            stages.start(f"preparing {name}")
            ready[name] = Contender(each, watch, leaving, stages)
            stages.done()
        ready_to_start(ready)
        result = AbResult(
            started=started,
            command=command,
            sweep=None,
            config=ready["A"].side.config,
            environment=surroundings,
            dtype=ready["A"].side.dtype,
            roof=roof,
            a=ready["A"].side,
            b=ready["B"].side,
            order="",
            at_s=[],
            half_width=ending.half_width,
            margin=ending.margin,
            budget_s=ending.budget_s,
            seconds=0.0,
            ended="budget",
        )
        gc.collect()
        gc.freeze()  # what is there now stays: each sample looks for garbage first
        leaving.callback(gc.unfreeze)
        try:
            alternate(result, ready, ending, watch, told)
        except KeyboardInterrupt:
            cut_to_blocks(result)
            if not result.order:
                raise
            result.ended = "interrupted"
        return result


def alternate(
    result: AbResult,
    ready: dict[str, Contender],
    ending: Ending,
    watch: CompileWatch,
    told: Callable[[AbResult, Ratio], None],
) -> None:
    """Takes samples in turns, and notes them in the result."""
    begin = time.perf_counter()
    turn = turns()
    while True:
        for _ in range(BLOCK):
            name = next(turn)
            at = time.perf_counter() - begin
            ready[name].sample(len(ready[name].side.samples), watch)
            result.order += name
            result.at_s.append(at)
        result.seconds = time.perf_counter() - begin
        found = {row.metric: row for row in rows(result)}
        if (row := found.get(HEADLINE)) is not None:
            told(result, row.ratio)
            if len(result.blocks()) >= LEAST_BLOCKS and row.ratio.half_width <= ending.half_width:
                result.ended = "narrow"
                return
        if result.seconds >= ending.budget_s:
            return


def cut_to_blocks(result: AbResult) -> None:
    """Leaves out the samples of a block that was not finished."""
    whole = len(result.order) // BLOCK
    result.order, result.at_s = result.order[: whole * BLOCK], result.at_s[: whole * BLOCK]
    for side in result.sides.values():
        del side.samples[whole * BLOCK // 2 :]


def folder_for(outputs: Path, started: str) -> Path:
    """Where its record goes: `outputs/2026-11-26/ab-05-12-33`."""
    day, _, clock = started.partition("T")
    return outputs / day / f"ab-{clock[:8].replace(':', '-')}"
