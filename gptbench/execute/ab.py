"""Measures two configurations interleaved, in one process.

A round makes both engines, one after the other, and alternates their samples for as long as making them took. The next
round makes new engines, so that what distinguishes a pair of engines apart from their configurations, such as the
addresses of their weights, varies between rounds. To that end, which one is made first, and how much memory is
allocated before each, is random: allocators are deterministic, and return the same addresses in the same order.
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
"""Minimum number of rounds for an interval."""
ENDING_ROUNDS = MIN_ROUNDS + 1
"""Minimum number of rounds after which the measurement may end: the interval must be narrow enough after two rounds in
a row, because repeated looks would too often find it narrow by chance."""
MIN_BLOCKS = 2
"""Minimum number of blocks in a round."""
MAX_SHIFT_BYTES = 2**29
MAX_SHIFT_SHARE = 0.02
"""Maximum memory that is allocated before an engine is made: bytes, and share of the free memory."""
LEFT_OUT = {"engine.fresh_cache": "false", "engine.measure_warm_start": "false"}
"""Overrides that turn off what does not apply here: compile times are measured by single runs."""


@dataclass(frozen=True)
class StoppingRule:
    """When the measurement ends."""

    half_width: float
    """Half width of the interval around the ratio of decode tokens/s that is narrow enough."""
    budget_s: float
    """Seconds for all rounds, including making the engines. There is always at least one round."""
    margin: float
    """Smallest relative difference that gets a verdict (0.01 is 1%)."""

    def __post_init__(self) -> None:
        for name in ("half_width", "budget_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')}", getattr(self, name), "a finite number over 0")
        if not 0 <= self.margin < math.inf:
            raise ConfigError("--margin", self.margin, "a finite number of at least 0")


@dataclass
class RequestedSide:
    """One side as it was requested."""

    overrides: list[str]
    asked: Config
    """Configuration as it was given, which is recorded."""
    config: Config
    """The same with its prompt as tokens."""

    @property
    def recorded(self) -> dict[str, Any]:
        """Configuration as it is recorded."""
        return as_recorded(self.asked, self.config)

    def with_engine(self, report: Callable[[str], None]) -> "RequestedSide":
        """Return the side with the engine that `engine=auto` selects here, which is reported."""
        return replace(self, config=with_engine(self.config, DeviceGroup.of(self.config.device), report)[0])


def read(overrides: list[str], composed: DictConfig) -> RequestedSide:
    """Return a validated side.

    Raises:
        UserError: the configuration is invalid, or measures something beside speed.
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
        UserError: it cannot run here, or does not fit beside what is in memory already.
    """

    def __init__(
        self, asked: RequestedSide, watch: CompileWatch, leaving: ExitStack, stages: Stages, chance: random.Random
    ) -> None:
        devices = DeviceGroup.of(asked.config.device)
        self.device = devices.local
        max_bytes = min(MAX_SHIFT_BYTES, int(MAX_SHIFT_SHARE * self.device.free_memory()))
        self.shift = torch.empty(chance.randrange(1, max_bytes), dtype=torch.uint8, device=self.device.torch)
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
        # Everything has been compiled before: see `Rounds.make_each_once`.
        self.compilation = prepare(self.engine, watch, empty_cache=False, process="later", sensor=self.sensor)
        warm_up(self.engine, self.workload, watch, self.sensor)

    def side(self, asked: RequestedSide) -> Side:
        """Return what is recorded of the side."""
        moved = traffic(self.engine, self.workload.new_tokens)
        return Side(overrides=asked.overrides, config=asked.recorded, dtype=self.device.dtype_name, traffic=moved)

    def sample(self, number: int, watch: CompileWatch) -> Sample:
        """Take one sample; samples of both sides with the same number use the same seed."""
        self.device.use()
        seed = sample_seed(self.workload.config.seed, number)
        return take_sample(self.engine, self.workload, seed, watch, self.sensor)


def block(number: int) -> str:
    """Return the order of a block: ABBA BAAB BAAB ABBA … (the Thue-Morse sequence). A linear drift cancels within each
    block, higher-order drifts over several."""
    return "ABBA" if number.bit_count() % 2 == 0 else "BAAB"


def measure(
    asked: tuple[RequestedSide, RequestedSide],
    ending: StoppingRule,
    command: list[str],
    observer: Observer,
    keep: Callable[[AbResult], None] = lambda _: None,
    on_prepared: Callable[[dict[str, PreparedSide]], None] = lambda _: None,
) -> AbResult:
    """Measure round after round until the interval is narrow enough, the time is used up, or Ctrl-C. The time starts
    once each side has been made once, to compile whatever has to be compiled.

    Args:
        keep: function called with the result after each round, and once more at the end, however it ended.
        on_prepared: function called with both sides of a round before their first sample: `scripts/ab_trials.py` slows
            one of them down.

    Raises:
        UserError: one side cannot run, both do not fit together, or are for different devices.
        KeyboardInterrupt: Ctrl-C before the first block was complete.
    """
    first = asked[0].config
    devices = DeviceGroup.of(first.device)
    device = devices.local
    if len({instantiate(each.config.device).torch for each in asked}) > 1:
        raise UserError(
            "device: A and B are on different devices, whose drifts do not cancel; expected the same device for both"
        )
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
        gc.freeze()  # each sample collects garbage first, which skips what exists now
        try:
            rounds.make_each_once()
            while not is_enough(result, ending):
                rounds.take()
                keep(result)
            keep(result)
        except BaseException as error:  # however it ends, the measurement is kept
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
    """Return whether the interval is narrow enough, or another round would most likely exceed the time; the result
    notes which."""
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
    """Return the seconds for enough rounds to end by the interval. Each is as long as the longest was, or as it would
    be with that much time: it then samples for as long as making the engines takes."""
    longest, begin = 0.0, 0.0
    for each in result.rounds:
        longest = max(longest, each.seconds, 2 * (each.at_s[0] - begin))
        begin += each.seconds
    return ENDING_ROUNDS * longest


@dataclass
class Rounds:
    """Takes rounds, and adds each to the result."""

    result: AbResult
    asked: dict[str, RequestedSide]
    ending: StoppingRule
    bench: Bench
    stages: Stages
    on_prepared: Callable[[dict[str, PreparedSide]], None]
    chance: random.Random = field(default_factory=random.Random)
    begin: float = 0.0
    """Start of the first round by the host's clock."""

    def make_each_once(self) -> None:
        """Make each side once, to compile whatever has to be compiled, and to check that it can run."""
        for name, each in self.asked.items():
            with self.stages.stage(f"compiling {name}"), ExitStack() as leaving, CompileWatch() as watch:
                self.result.sides[name] = self.prepared_side(each, watch, leaving).side(each)
        self.result.config, self.result.dtype = self.result.sides["A"].config, self.result.sides["A"].dtype
        self.begin = time.perf_counter()

    def prepared_side(self, asked: RequestedSide, watch: CompileWatch, leaving: ExitStack) -> PreparedSide:
        """Return a side that is ready to be sampled."""
        return PreparedSide(asked, watch, leaving, self.stages, self.chance)

    def take(self) -> None:
        """Make both engines, and take interleaved samples. The round is in the result from its first sample on."""
        number = len(self.result.rounds)
        orders = {"AB": "BA", "BA": "AB"}
        # Every second round reverses the order of the one before, so that both sides are first equally often.
        built = orders[self.result.rounds[-1].built] if number % 2 else self.chance.choice(list(orders))
        current = Round(built=built)
        start = time.perf_counter()
        current.probes += self.bench.probe("before")  # both engines may leave no memory for it
        with (
            ExitStack() as leaving,
            CompileWatch() as watch,
        ):  # it ends before the models are freed, which resets the compiler
            ready: dict[str, PreparedSide] = {}
            for name in current.built:
                with self.stages.stage(f"round {number + 1}: preparing {name}"):
                    try:
                        ready[name] = self.prepared_side(self.asked[name], watch, leaving)
                    except DoesNotFitError as error:
                        beside = (
                            f"{name} beside {current.built[0]}, which is in memory at the same time" if ready else name
                        )
                        raise DoesNotFitError(f"{beside}: {error}") from error
                current.load_s[name], current.compilations[name] = ready[name].load_s, ready[name].compilation
            self.on_prepared(ready)
            with self.stages.stage(f"round {number + 1}: sampling"):
                self.sample(current, ready, watch, start)
        current.probes += self.bench.probe("after")
        current.seconds = time.perf_counter() - start
        self.result.roof = self.bench.roofs.read()
        self.result.seconds = time.perf_counter() - self.begin

    def sample(self, current: Round, ready: dict[str, PreparedSide], watch: CompileWatch, start: float) -> None:
        """Take block after block for as long as making the engines has taken since `start`."""
        built_s = time.perf_counter() - start
        sampling_s = min(built_s, self.ending.budget_s / ENDING_ROUNDS / 2)
        self.result.rounds.append(current)
        first = self.chance.randrange(2**10)
        while len(current.order) < MIN_BLOCKS * BLOCK or time.perf_counter() - start < built_s + sampling_s:
            for name in block(len(current.order) // BLOCK + first):
                at = time.perf_counter() - self.begin
                taken = ready[name].sample(len(current.samples[name]), watch)
                current.samples[name].append(taken)
                current.order += name
                current.at_s.append(at)


def cut_to_blocks(result: AbResult) -> None:
    """Remove the samples of an unfinished block, and a round without a block."""
    for each in result.rounds:
        whole = len(each.order) // BLOCK * BLOCK
        each.order, each.at_s = each.order[:whole], each.at_s[:whole]
        for samples in each.samples.values():
            del samples[whole // 2 :]
    result.rounds = [each for each in result.rounds if each.order]


def folder_for(outputs: Path, started: str) -> Path:
    """Return the folder of the record: `outputs/2026-11-26/ab-05-12-33`."""
    day, _, clock = started.partition("T")
    return outputs / day / f"ab-{clock[:8].replace(':', '-')}"
