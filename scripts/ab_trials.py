"""Calibration of `gptbench ab`: runs it many times with A the same as B, or with B slowed down by a known share.

    python scripts/ab_trials.py --trials 100 --slower 2% model=demo device=cpu engine=eager

To slow B down, each of its decode steps is followed by waiting: a kernel that spins on a GPU, a loop on a CPU. Prints a
line of JSON for each trial, and at the end how often each verdict was given.
"""

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gptbench.commands.ab import composed
from gptbench.commands.compare import row_line
from gptbench.commands.parsers import share
from gptbench.compare.interleaved import headline
from gptbench.device import Device
from gptbench.execute import ab
from gptbench.generate import generate
from gptbench.present.terminal import Terminal
from gptbench.schema.summary import log_ratios


def slow_down(side: ab.PreparedSide, part: float) -> None:
    """Make each decode step of a side's engine longer by a share of its median."""
    engine, run = side.engine, side.engine.run_decode
    step_s = median_step(side)
    wait = spin_on_gpu(engine.device) if engine.device.is_cuda else spin
    more = 0.0

    def slowed() -> None:
        run()
        wait(more)

    engine.run_decode = slowed  # type: ignore[method-assign]
    more = max(0.0, step_s * (1 + part) - median_step(side))  # launching the wait takes time, too


def median_step(side: ab.PreparedSide) -> float:
    """Return the median seconds of a decode step, from a generation that is discarded."""
    generate(side.engine, side.workload)
    side.device.synchronize()
    return statistics.median(side.workload.clock.intervals()[1:])


def spin(seconds: float) -> None:
    """Keep a CPU busy for some seconds."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def spin_on_gpu(device: Device) -> Callable[[float], None]:
    """Return a function that launches a kernel which keeps a GPU busy for some seconds."""
    cycles = 1_000_000
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for _ in range(3):  # the last one counts
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        device.synchronize()
    per_s = cycles / (begin.elapsed_time(end) / 1e3)
    return lambda seconds: torch.cuda._sleep(max(1, round(seconds * per_s)))


def main() -> None:
    """Run all trials, and print a line of JSON for each and one for all."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--slower", type=share, help="share by which B is slowed down: 2%%; without it, A against A")
    parser.add_argument("--half-width", type=share, default=0.005)
    parser.add_argument("--margin", type=share, default=0.005)
    parser.add_argument("--budget-s", type=float, default=10.0)
    options = parser.parse_args()
    stopping = ab.StoppingRule(options.half_width, options.budget_s, options.margin)
    side = ab.read(options.overrides, composed(options.overrides, None))
    verdicts: Counter[str] = Counter()
    ratios = []
    begin = time.perf_counter()

    def on_prepared(sides: dict[str, ab.PreparedSide]) -> None:
        if options.slower:
            slow_down(sides["B"], options.slower)

    for number in range(options.trials):
        result = ab.measure((side, side), stopping, sys.argv, Terminal(quiet=False), on_prepared=on_prepared)
        row = headline(result)
        assert row is not None, "nothing but compiling"
        verdicts[row.verdict.value] += 1
        ratios.append(row.ratio)
        line = {"trial": number, "rounds": len(result.rounds), "seconds": round(result.seconds, 2), **row_line(row)}
        line["log_ratios"] = [round(ratio, 5) for ratio in log_ratios(result)]
        line["built"] = [entry.built for entry in result.rounds]
        print(json.dumps(line), flush=True)
    narrow = [ratio for ratio in ratios if ratio.half_width <= options.half_width]
    truth = 1 / (1 + (options.slower or 0.0))
    covered = sum(
        ratio.low is not None and ratio.high is not None and ratio.low <= truth <= ratio.high for ratio in ratios
    )
    summary = {
        "overrides": options.overrides,
        "slower": options.slower,
        "trials": options.trials,
        "verdicts": dict(verdicts),
        "narrow_enough": len(narrow),
        "intervals_that_hold_the_truth": covered,
        "median_ratio": statistics.median(ratio.value for ratio in ratios),
        "least_and_largest_ratio": [min(ratio.value for ratio in ratios), max(ratio.value for ratio in ratios)],
        "median_half_width": statistics.median(ratio.half_width for ratio in ratios),
        "seconds": round(time.perf_counter() - begin),
        "device": result.environment.device,
        "power_limit_w": result.environment.power_limit_w,
        "commit": result.environment.commit,
        "torch": result.environment.libraries.get("torch"),
    }
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main()
