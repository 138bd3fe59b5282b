"""Two configurations measured in turns, in one process.

A round makes both engines, one after the other, and lets their samples alternate for as long as making them took. The
next round makes them anew: what a pair of engines differs by that is not their configuration, such as where their
weights lie, is then another. For that it is left to chance which one is made first, and how much memory is taken before
each: allocators are deterministic, and give the same places in the same order again.
"""

import gc
import math
import random
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from gptbench.base.errors import ConfigError, DoesNotFitError, UserError
from gptbench.base.outputs import check_folder
from gptbench.compare.ratio import ratio_of_pairs
from gptbench.config import Config, load
from gptbench.config.targets import instantiate, target
from gptbench.device.group import DeviceGroup
from gptbench.execute.measurement import Bench
from gptbench.execute.observer import Observer, Stages
from gptbench.execute.preparation import as_recorded, make_engine, plan, with_engine
from gptbench.execute.reuse import release
from gptbench.generate import Workload
from gptbench.measure.compilation import CompileWatch, prepare
from gptbench.measure.samples import sample_seed, take_sample, warm_up
from gptbench.measure.sensors import Sensor, sensor_of
from gptbench.measure.traffic import traffic
from gptbench.schema.ab import BLOCK, AbResult, Round, Side
from gptbench.schema.sample import Sample
from gptbench.schema.summary import log_ratios
from gptbench.text.prompt import make_tokenizer, with_prompt

MIN_ROUNDS = 6
"""Of an interval that counts."""
ENDING_ROUNDS = MIN_ROUNDS + 1
"""After which it may end at the earliest: the interval must be narrow enough after two rounds in a row. Whoever looks
again and again would else see it narrow by chance too often."""
MIN_BLOCKS = 2
"""Of a round."""
MAX_SHIFT_BYTES = 2**29
MAX_SHIFT_SHARE = 0.02
"""Memory that is taken before an engine is made, at most: bytes, and share of what is free."""
LEFT_OUT = {"engine.fresh_cache": "false", "engine.measure_warm_start": "false"}
"""What a configuration may ask for that has no place here: compile times are a single run's."""


@dataclass(frozen=True)
class StoppingRule:
    """When it is enough."""

    half_width: float
    """Of the interval around the ratio of decode tokens/s."""
    budget_s: float
    """Seconds for all rounds, with making the engines. One round there is in any case."""
    margin: float
    """Ratios nearer to 1 are no verdict: a share."""

    def __post_init__(self) -> None:
        for name in ("half_width", "budget_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')}", getattr(self, name), "a finite number over 0")
        if not 0 <= self.margin < math.inf:
            raise ConfigError("--margin", self.margin, "a finite number of at least 0")


@dataclass
class RequestedSide:
    """A side, as it was asked for."""

    overrides: list[str]
    asked: Config
    """What is recorded of it."""
    config: Config
    """The same with its prompt as tokens."""

    @property
    def recorded(self) -> dict[str, Any]:
        return as_recorded(self.asked, self.config)

    def with_engine(self, tell: Callable[[str], None]) -> "RequestedSide":
        """The same with the engine that `engine=auto` stands for here, which is told."""
        return replace(self, config=with_engine(self.config, DeviceGroup.of(self.config.device), tell)[0])


def read(overrides: list[str], composed: DictConfig) -> RequestedSide:
    """Validates a side.

    Raises:
        UserError: it cannot be, or measures something beside speed.
    """
    asked = load(composed, overrides)
    check_folder("outputs", asked.outputs)
    task = asked.task
    if not task.is_speed_alone:
        raise ConfigError("task", task.name, "speed, without breakdown and energy: A and B are compared by speed alone")
    return RequestedSide(overrides, asked, with_prompt(asked, make_tokenizer(asked.model)))


class PreparedSide:
    """A side that is ready to be sampled.

    Raises:
        UserError: it cannot run here, or does not fit beside what is there already.
    """

    def __init__(
        self, asked: RequestedSide, watch: CompileWatch, leaving: ExitStack, stages: Stages, chance: random.Random
    ) -> None:
        devices = DeviceGroup.of(asked.config.device)
        self.device = devices.local
        most = min(MAX_SHIFT_BYTES, int(MAX_SHIFT_SHARE * self.device.free_memory()))
        self.shift = torch.empty(chance.randrange(1, most), dtype=torch.uint8, device=self.device.torch)
        config = asked.config
        target(config.engine).warm_up_compiler(config.engine, self.device)
        start = time.perf_counter()
        model = plan(config, devices)
        leaving.callback(release, model, self.device)
        self.engine, _ = make_engine(config, devices, model, stages.reading)
        leaving.callback(self.engine.release)
        self.device.synchronize()
        self.load_s = time.perf_counter() - start
        self.workload: Workload = instantiate(config.workload, self.device)
        self.sensor: Sensor = sensor_of(devices)
        self.engine.tune()
        # What is recorded of it has been compiled before: see `Rounds.make_each_once`.
        self.compilation = prepare(self.engine, watch, empty_cache=False, process="later", sensor=self.sensor)
        warm_up(self.engine, self.workload, watch, self.sensor)

    def side(self, asked: RequestedSide) -> Side:
        """What is recorded of it."""
        moved = traffic(self.engine, self.workload.new_tokens)
        return Side(overrides=asked.overrides, config=asked.recorded, dtype=self.device.dtype_name, traffic=moved)

    def sample(self, number: int, watch: CompileWatch) -> Sample:
        """One more; the two sides' samples of the same number draw from the same seed."""
        self.device.use()
        seed = sample_seed(self.workload.config.seed, number)
        return take_sample(self.engine, self.workload, seed, watch, self.sensor)


def block(number: int) -> str:
    """ABBA BAAB BAAB ABBA … (Thue and Morse's sequence): in each block what drifts steadily cancels, over several what
    bends does, too."""
    return "ABBA" if number.bit_count() % 2 == 0 else "BAAB"


def measure(
    asked: tuple[RequestedSide, RequestedSide],
    ending: StoppingRule,
    command: list[str],
    observer: Observer,
    keep: Callable[[AbResult], None] = lambda _: None,
    on_prepared: Callable[[dict[str, PreparedSide]], None] = lambda _: None,
) -> AbResult:
    """Measures round after round, until the interval is narrow enough, the time is over, or Ctrl-C. The time does not
    begin before each side was made once, for whatever has to be compiled.

    Args:
        keep: is given what there is after each round, and once more in the end, whatever that was.
        on_prepared: is given both sides of a round before their first sample: `scripts/ab_trials.py` slows one down.

    Raises:
        UserError: one side cannot run, both do not fit together, or are for different devices.
        KeyboardInterrupt: before there was a whole block.
    """
    first = asked[0].config
    devices = DeviceGroup.of(first.device)
    device = devices.local
    if len({instantiate(each.config.device).torch for each in asked}) > 1:
        raise UserError("device: A and B are on different ones, which do not drift alike; expected the same for both")
    sides = {name: each.with_engine(observer.remark) for name, each in zip("AB", asked, strict=True)}
    with observer.stages(None) as stages:
        bench = Bench.of(first, devices, stages, observer.warn)
        result = AbResult(
            **bench.fields(device),
            command=command,
            sweep=None,
            config=sides["A"].recorded,
            sides={},
            half_width=ending.half_width,
            margin=ending.margin,
            budget_s=ending.budget_s,
        )
        rounds = Rounds(result, sides, ending, bench, stages, on_prepared)
        gc.collect()
        gc.freeze()  # what is there now stays: each sample looks for garbage first
        try:
            rounds.make_each_once()
            while not is_enough(result, ending):
                rounds.take()
                keep(result)
            keep(result)
        except BaseException as error:  # whatever ends it, what was measured is kept
            cut_to_blocks(result)
            if not result.rounds:
                raise
            interrupted = isinstance(error, KeyboardInterrupt)
            result.ended = "interrupted" if interrupted else "failed"
            result.reason = None if interrupted else f"{type(error).__name__}: {error}"
            keep(result)
            if not interrupted:
                raise
        finally:
            gc.unfreeze()
    return result


def is_enough(result: AbResult, ending: StoppingRule) -> bool:
    """Whether the interval is narrow enough, or another round would most likely end after the time; notes which."""
    if not result.rounds:
        return False
    ratios = log_ratios(result)
    if all(is_narrow(known, ending) for known in (ratios, ratios[:-1])):
        result.ended = "narrow"
        return True
    if result.seconds + result.rounds[-1].seconds > ending.budget_s:
        result.ended = "budget"
        return True
    return False


def is_narrow(ratios: list[float], ending: StoppingRule) -> bool:
    return len(ratios) >= MIN_ROUNDS and ratio_of_pairs(ratios).half_width <= ending.half_width


def budget_that_can_suffice(result: AbResult) -> float:
    """Seconds for so many rounds that the interval may end it. Each as long as the longest was, or as long as it would
    be with that much time: then it samples for as long as making the engines takes."""
    longest, begin = 0.0, 0.0
    for each in result.rounds:
        longest = max(longest, each.seconds, 2 * (each.at_s[0] - begin))
        begin += each.seconds
    return ENDING_ROUNDS * longest


@dataclass
class Rounds:
    """Takes rounds, each of which goes into the result."""

    result: AbResult
    asked: dict[str, RequestedSide]
    ending: StoppingRule
    bench: Bench
    stages: Stages
    on_prepared: Callable[[dict[str, PreparedSide]], None]
    chance: random.Random = field(default_factory=random.Random)
    begin: float = 0.0
    """When the first one began, by the host's clock."""

    def make_each_once(self) -> None:
        """For whatever has to be compiled, and to see that each side can run."""
        for name, each in self.asked.items():
            with self.stages.stage(f"compiling {name}"), ExitStack() as leaving, CompileWatch() as watch:
                self.result.sides[name] = self.contender(each, watch, leaving).side(each)
        self.result.config, self.result.dtype = self.result.sides["A"].config, self.result.sides["A"].dtype
        self.begin = time.perf_counter()

    def contender(self, asked: RequestedSide, watch: CompileWatch, leaving: ExitStack) -> PreparedSide:
        return PreparedSide(asked, watch, leaving, self.stages, self.chance)

    def take(self) -> None:
        """Makes both engines, and takes samples in turns. The round is in the result from its first sample on."""
        number = len(self.result.rounds)
        orders = {"AB": "BA", "BA": "AB"}
        # Each second round has the other order than the one before it, so that both are as often first.
        built = orders[self.result.rounds[-1].built] if number % 2 else self.chance.choice(list(orders))
        one = Round(built=built)
        start = time.perf_counter()
        one.probes += self.bench.probe("before")  # while there is memory for it: both engines may leave none
        with ExitStack() as leaving, CompileWatch() as watch:  # which ends before models go: that resets the compiler
            ready: dict[str, PreparedSide] = {}
            for name in one.built:
                with self.stages.stage(f"round {number + 1}: preparing {name}"):
                    try:
                        ready[name] = self.contender(self.asked[name], watch, leaving)
                    except DoesNotFitError as error:
                        beside = f"{name} beside {one.built[0]}, which is in memory as well" if ready else name
                        raise DoesNotFitError(f"{beside}: {error}") from error
                one.load_s[name], one.compilations[name] = ready[name].load_s, ready[name].compilation
            self.on_prepared(ready)
            with self.stages.stage(f"round {number + 1}: sampling"):
                self.sample(one, ready, watch, start)
        one.probes += self.bench.probe("after")
        one.seconds = time.perf_counter() - start
        self.result.roof = self.bench.roofs.read()
        self.result.seconds = time.perf_counter() - self.begin

    def sample(self, one: Round, ready: dict[str, PreparedSide], watch: CompileWatch, start: float) -> None:
        """Block after block, for as long as making the engines has taken since `start`."""
        built_s = time.perf_counter() - start
        sampling_s = min(built_s, self.ending.budget_s / ENDING_ROUNDS / 2)
        self.result.rounds.append(one)
        first = self.chance.randrange(2**10)
        while len(one.order) < MIN_BLOCKS * BLOCK or time.perf_counter() - start < built_s + sampling_s:
            for name in block(len(one.order) // BLOCK + first):
                at = time.perf_counter() - self.begin
                taken = ready[name].sample(len(one.samples[name]), watch)
                one.samples[name].append(taken)
                one.order += name
                one.at_s.append(at)


def cut_to_blocks(result: AbResult) -> None:
    """Leaves out the samples of a block that was not finished, and a round without one."""
    for each in result.rounds:
        whole = len(each.order) // BLOCK * BLOCK
        each.order, each.at_s = each.order[:whole], each.at_s[:whole]
        for samples in each.samples.values():
            del samples[whole // 2 :]
    result.rounds = [each for each in result.rounds if each.order]


def folder_for(outputs: Path, started: str) -> Path:
    """Where its record goes: `outputs/2026-11-26/ab-05-12-33`."""
    day, _, clock = started.partition("T")
    return outputs / day / f"ab-{clock[:8].replace(':', '-')}"
