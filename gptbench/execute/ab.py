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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from gptbench.base.errors import ConfigError, DoesNotFitError, UserError
from gptbench.base.outputs import check_folder
from gptbench.compare.ratio import of_pairs
from gptbench.config import Config, KernelsConfig, load
from gptbench.config.targets import instantiate, target
from gptbench.device import Device
from gptbench.execute.reuse import give_back, release
from gptbench.execute.run import beginning, make_engine, plan, probe, with_engine
from gptbench.generate import Workload
from gptbench.measure.compilation import CompileWatch, prepare
from gptbench.measure.roof import Roofs
from gptbench.measure.samples import sample_seed, take_sample, warm_up
from gptbench.measure.sensors import Sensor, sensor_of
from gptbench.measure.traffic import traffic
from gptbench.present.terminal import Stages
from gptbench.schema.ab import BLOCK, AbResult, Round, Side
from gptbench.schema.sample import Sample
from gptbench.schema.summary import log_ratios
from gptbench.text.prompt import make_tokenizer, with_prompt

LEAST_ROUNDS = 6
"""Of an interval that counts."""
ENDING_ROUNDS = LEAST_ROUNDS + 1
"""After which it may end at the earliest: the interval must be narrow enough after two rounds in a row. Whoever looks
again and again would else see it narrow by chance too often."""
LEAST_BLOCKS = 2
"""Of a round."""
MOST_SHIFT_BYTES = 2**29
MOST_SHIFT_SHARE = 0.02
"""Memory that is taken before an engine is made, at most: bytes, and share of what is free."""
LEFT_OUT = {"engine.fresh_cache": "false", "engine.measure_warm_start": "false"}
"""What a configuration may ask for that has no place here: compile times are a single run's."""


@dataclass(frozen=True)
class Ending:
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
    check_folder("outputs", config.outputs)
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

    def __init__(
        self, asked: Asked, watch: CompileWatch, leaving: ExitStack, stages: Stages, chance: random.Random
    ) -> None:
        self.device: Device = instantiate(asked.config.device)
        most = min(MOST_SHIFT_BYTES, int(MOST_SHIFT_SHARE * self.device.free_memory()))
        self.shift = torch.empty(chance.randrange(1, most), dtype=torch.uint8, device=self.device.torch)
        config, self.resolved, _ = with_engine(asked.config, asked.resolved, self.device)
        target(config.engine).begin(config.engine, self.device)
        start = time.perf_counter()
        model = plan(config, self.device)
        leaving.callback(release, model, self.device)
        self.engine, _ = make_engine(config, self.device, model, stages.reading)
        leaving.callback(self.engine.release)
        self.device.synchronize()
        self.load_s = time.perf_counter() - start
        self.workload: Workload = instantiate(config.workload, self.device)
        self.sensor: Sensor = sensor_of(self.device)
        self.engine.tune()
        self.compilation = prepare(self.engine, watch, empty_cache=False, sensor=self.sensor)
        warm_up(self.engine, self.workload, watch, self.sensor)

    def side(self, overrides: list[str]) -> Side:
        """What is recorded of it."""
        moved = traffic(self.engine, self.workload.new_tokens)
        return Side(overrides=overrides, config=self.resolved, dtype=self.device.dtype_name, traffic=moved)

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
    asked: tuple[Asked, Asked],
    ending: Ending,
    command: list[str],
    stages: Stages,
    keep: Callable[[AbResult], None] = lambda _: None,
    ready_to_start: Callable[[dict[str, Contender]], None] = lambda _: None,
) -> AbResult:
    """Measures round after round, until the interval is narrow enough, the time is over, or Ctrl-C. The time does not
    begin before each side was made once, for whatever has to be compiled.

    Args:
        keep: is given what there is after each round, and once more in the end, whatever that was.
        ready_to_start: is given both sides of a round before their first sample: `scripts/ab_trials.py` slows one down.

    Raises:
        UserError: one side cannot run, both do not fit together, or are for different devices.
        KeyboardInterrupt: before there was a whole block.
    """
    first = asked[0].config
    device: Device = instantiate(first.device)
    give_back()
    if len({instantiate(each.config.device).torch for each in asked}) > 1:
        raise UserError("device: A and B are on different ones, which do not drift alike; expected the same for both")
    started, surroundings, roofs, roof = beginning(first, device, stages, again=first.device.measure_roof)
    result = AbResult(
        started=started,
        command=command,
        sweep=None,
        config=asked[0].resolved,
        environment=surroundings,
        dtype=device.dtype_name,
        roof=roof,
        sides={},
        half_width=ending.half_width,
        margin=ending.margin,
        budget_s=ending.budget_s,
    )
    sides = dict(zip("AB", asked, strict=True))
    chance = random.Random()
    gc.collect()
    gc.freeze()  # what is there now stays: each sample looks for garbage first
    try:
        for name, each in sides.items():
            stages.start(f"compiling {name}")
            with ExitStack() as leaving, CompileWatch() as watch:
                ready = Contender(each, watch, leaving, stages, chance)
                result.sides[name] = ready.side(each.overrides)
        result.config, result.dtype = result.sides["A"].config, result.sides["A"].dtype
        begin = time.perf_counter()
        while not is_enough(result, ending):
            take_round(result, sides, ending, begin, stages, ready_to_start, chance, roofs)
            result.roof = roofs.read()
            result.seconds = time.perf_counter() - begin
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


def is_enough(result: AbResult, ending: Ending) -> bool:
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


def is_narrow(ratios: list[float], ending: Ending) -> bool:
    return len(ratios) >= LEAST_ROUNDS and of_pairs(ratios).half_width <= ending.half_width


def budget_that_can_suffice(result: AbResult) -> float:
    """Seconds for so many rounds that the interval may end it. Each as long as the longest was, or as long as it would
    be with that much time: then it samples for as long as making the engines takes."""
    longest, begin = 0.0, 0.0
    for each in result.rounds:
        longest = max(longest, each.seconds, 2 * (each.at_s[0] - begin))
        begin += each.seconds
    return ENDING_ROUNDS * longest


def take_round(
    result: AbResult,
    asked: dict[str, Asked],
    ending: Ending,
    begin: float,
    stages: Stages,
    ready_to_start: Callable[[dict[str, Contender]], None],
    chance: random.Random,
    roofs: Roofs,
) -> None:
    """Makes both engines, and takes samples in turns. The round is in the result from its first sample on."""
    number = len(result.rounds)
    orders = {"AB": "BA", "BA": "AB"}
    # Each second round has the other order than the one before it, so that both are as often first.
    one = Round(built=orders[result.rounds[-1].built] if number % 2 else chance.choice(list(orders)))
    start = time.perf_counter()
    one.probes += probe(roofs, "before", result.failures)  # while there is memory for it: both engines may leave none
    with ExitStack() as leaving, CompileWatch() as watch:  # which ends before models go: that resets the compiler
        ready: dict[str, Contender] = {}
        for name in one.built:
            stages.start(f"round {number + 1}: preparing {name}")
            try:
                ready[name] = Contender(asked[name], watch, leaving, stages, chance)
            except DoesNotFitError as error:
                beside = f"{name} beside {one.built[0]}, which is in memory as well" if ready else name
                raise DoesNotFitError(f"{beside}: {error}") from error
            one.load_s[name], one.compilations[name] = ready[name].load_s, ready[name].compilation
        ready_to_start(ready)
        stages.start(f"round {number + 1}: sampling")
        built_s = time.perf_counter() - start
        sampling_s = min(built_s, ending.budget_s / ENDING_ROUNDS / 2)
        result.rounds.append(one)
        first = chance.randrange(2**10)
        while len(one.order) < LEAST_BLOCKS * BLOCK or time.perf_counter() - start < built_s + sampling_s:
            for name in block(len(one.order) // BLOCK + first):
                at = time.perf_counter() - begin
                taken = ready[name].sample(len(one.samples[name]), watch)
                one.samples[name].append(taken)
                one.order += name
                one.at_s.append(at)
    one.probes += probe(roofs, "after", result.failures)
    one.seconds = time.perf_counter() - start


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
