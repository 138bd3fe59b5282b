"""The registry of metrics: what a number is called, how it is computed, compared and shown, one row for each.

Records, JSON and MLflow's full list of metrics hold values in base units under names that end in them (`tpot_p50_s` in
seconds, `peak_memory_bytes` in bytes, `mbu` as a fraction). Tables, charts, the report and MLflow's `brief/` metrics
show them with their label, unit and factor: TPOT p50 in ms, peak memory in GB, MBU in %. Everything that lists metrics
asks the registry; a further metric is a row here, or a call of `register` in a plugin, and a formula.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from typing import Any

from gptbench.base.errors import UserError
from gptbench.base.numbers import number
from gptbench.schema import statistics
from gptbench.schema.machine import Roof
from gptbench.schema.sample import Sample, Traffic


class Direction(Enum):
    """Which values of a metric are the better ones."""

    higher = "higher is better"
    lower = "lower is better"
    neither = "neither is better"


@dataclass(frozen=True)
class Kind:
    """What metrics that are compared have in common."""

    name: str
    """By which a baseline sets margins, and reasons of a busy machine are sorted."""
    noun: str
    """The same for a person."""
    margin: float
    """Share: ratios nearer to 1 are no verdict, however narrow their interval."""
    better: str
    """Verdict on the better of two."""
    worse: str
    is_counted: bool = False
    """Whether it is counted, not timed: on a GPU it is the same at each start, and the samples of one process tell
    nothing of another's."""


SPEED = Kind("speed", "speed", 0.01, "faster", "slower")
COMPILE = Kind("compile", "compile time", 0.10, "faster", "slower")
MEMORY = Kind("memory", "memory", 0.01, "less", "more", is_counted=True)
ENERGY = Kind("energy", "energy", 0.03, "less", "more")
QUALITY = Kind("quality", "quality", 0.005, "better", "worse")
KINDS = {kind.name: kind for kind in (SPEED, COMPILE, MEMORY, QUALITY, ENERGY)}


class View(Enum):
    """Where some metrics are shown, and others are not."""

    run = "the terminal's table of a run"
    sweep = "tables of a sweep: the terminal's, and MLflow's of its parent run"
    interleaved = "what `gptbench ab` compares, and MLflow keeps of each of its samples"
    report = "the report's table of runs"
    markdown = "the Markdown that `gptbench export` writes"
    kernels = "tables of `task=kernels`; its metrics are fields of `KernelMetrics`"


@dataclass(frozen=True)
class PerToken:
    """What each token of a text that was predicted contributes to a metric."""

    values: Callable[[Any], Sequence[float]]
    """Of `Predictions`: a value for each token."""
    is_logarithm: bool = False
    """Whether the metric is exp of their mean; else it is their mean."""


@dataclass(frozen=True)
class Metric:
    """One number that records have, or can be made to tell."""

    name: str
    """In records and JSON; it ends in the unit of what is recorded."""
    label: str
    """Name that a person reads, without the unit."""
    unit: str
    """Unit of what is shown; empty for a plain number."""
    factor: float = 1.0
    """What the recorded value is multiplied by to be in that unit."""
    meaning: str = ""
    """What it is, in one or two sentences that can be read alone."""
    direction: Direction = Direction.neither
    """Which values are the better ones."""
    kind: Kind | None = None
    """How it is judged by `gptbench compare` and `gptbench gate`; None where it is not compared."""
    of_sample: Callable[[Sample, Traffic, Roof], float | None] | None = None
    """Its value for one sample; a run's is the median over the valid ones, or that of `share`."""
    share: float | None = None
    """Of a percentile of decode steps: the share of the steps that are no longer. A run's is of the steps of all its
    valid samples."""
    of: Callable[[Any], float | None] | None = None
    """Its value for a run without `of_sample`: a function of the result, or of the part of it named by `part`; None
    where there is none."""
    part: str = ""
    """Field of the result that `of` takes, and without which it has no value; empty for the whole result."""
    per_token: PerToken | None = None
    """What it is the mean of, for a comparison token by token; None where it is of no text."""
    asked_by: str | None = None
    """Field of the engine's section that makes every run have it; None where nothing but what was measured does."""
    views: Mapping[View, int] = field(default_factory=dict)
    """Where it is shown, and how far in front: the lowest number first, equal ones as they are registered."""
    brief: str | None = None
    """Name among MLflow's `brief/` metrics, which ends in the unit shown; None where it is not among them."""
    gpt_fast: str | None = None
    """What PyTorch's gpt_fast benchmark calls it; None where it does not report it."""

    def __post_init__(self) -> None:
        if self.kind is not None and self.direction is Direction.neither:
            raise UserError(f"metric={self.name}: expected a direction, as it has a kind, {self.kind.name}")

    @property
    def heading(self) -> str:
        """Label and unit, as the head of a column: `TPOT p50 (ms)`, and of a kernel's `% of the roof`."""
        if View.kernels in self.views:
            return f"{self.unit} {self.label}".strip()
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float | None) -> str:
        """A recorded value in the unit that is shown; empty where there is none."""
        return "" if value is None else number(value * self.factor)

    @property
    def is_counted(self) -> bool:
        """See `Kind`."""
        return self.kind is not None and self.kind.is_counted

    @property
    def varies_in_run(self) -> bool:
        """Whether the samples of one run tell how much it varies."""
        return self.of_sample is not None and not self.is_counted

    @property
    def words(self) -> tuple[str, str]:
        """Verdicts on less of it, and on more."""
        assert self.kind is not None
        better, worse = self.kind.better, self.kind.worse
        return (worse, better) if self.direction is Direction.higher else (better, worse)


METRICS: dict[str, Metric] = {}
"""By name, in the order in which tables show them: changed by `register` alone."""


def register(metric: Metric) -> Metric:
    """Adds a metric, which is then computed of every record, and shown wherever it says.

    Raises:
        UserError: there is one of that name.
    """
    if metric.name in METRICS:
        raise UserError(f"metric={metric.name}: expected a name of its own, and there is such a metric already")
    METRICS[metric.name] = metric
    return metric


def metric_of(name: str) -> Metric:
    """The metric of that name, or that a kernel's name leads to (`gemv/D4096/int8/kernel/gb_per_s`); for any other,
    such as one of a plugin that is not there, what can be told by its name."""
    if (known := METRICS.get(name)) is not None:
        return known
    if (known := METRICS.get(name.rpartition("/")[2])) is not None and KERNELS in known.views:
        return replace(known, name=name, label=name, views={})
    label = name.replace("_", " ") if name.endswith("_s") else name
    return Metric(name, label, next((unit for end, unit in UNITS.items() if name.endswith(end)), ""))


UNITS = {"tokens_per_s": "tokens/s", "gb_per_s": "GB/s", "_s": "s", "_w": "W", "_bytes": "B", "_mhz": "MHz"}
"""Ends of names that tell a unit."""


def in_order(names: Iterable[str]) -> list[str]:
    """Names of metrics in the order of the registry, then the others by name."""
    order = {name: index for index, name in enumerate(METRICS)}
    return sorted(set(names), key=lambda name: (order.get(name, len(order)), name))


def shown_in(view: View) -> list[Metric]:
    """The metrics of a view, in its order."""
    return sorted((one for one in METRICS.values() if view in one.views), key=lambda one: one.views[view])


def compared() -> list[Metric]:
    """Those of runs on which there can be a verdict, kind by kind."""
    kinds = list(KINDS.values())
    of_runs = (one for one in METRICS.values() if KERNELS not in one.views)
    found = [(kinds.index(one.kind), one) for one in of_runs if one.kind is not None]
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


# The metrics

HEADLINE = "decode_tokens_per_s"
"""By which runs are ranked, what `gptbench ab` measures until it knows, and charts and sentences are about."""
STEP = "tpot_p50_s"
"""A run's step: the median one."""
CALL_RATE = "gptfast_tokens_per_s"
"""gpt_fast's tokens/s, which take in the prefill."""
KERNEL_TIME = "seconds"
"""Of one implementation of a kernel, by `task=kernels`."""

RUN, SWEEP, INTERLEAVED, REPORT, MARKDOWN, KERNELS = View
HIGHER, LOWER = Direction.higher, Direction.lower
LAST = 9
"""Place in a view where none is given."""
PERCENTILES = {
    50: (1, "tpot_p50_ms", "half of the decode steps took no longer than this"),
    90: (LAST, None, "9 of 10 decode steps took no longer than this"),
    99: (2, "tpot_p99_ms", "99 of 100 decode steps took no longer than this, and 1 of 100 did"),
}
"""Of decode steps: place in the table of a run, name in MLflow's `brief/` metrics, and meaning."""
STATES = {
    "clock_mhz": ("clock", "MHz", "Clock of the device's processors"),
    "memory_clock_mhz": ("memory clock", "MHz", "Clock of the device's memory"),
    "power_w": ("power", "W", "Power that the device draws"),
    "temperature_c": ("temperature", "°C", "Temperature of the device"),
}
"""Readings of a device during the samples, fields of `DeviceState`: label, unit and what it is."""


def at(*views: View, **first: int) -> dict[View, int]:
    """Places in views; where no number is given by the view's name, `LAST`."""
    return dict.fromkeys(views, LAST) | {View[name]: number for name, number in first.items()}


def of_samples() -> Iterator[Metric]:
    """Those that each sample has, and intervals around them."""
    yield Metric(
        HEADLINE, "decode", "tokens/s", 1, "Tokens that the decode steps of a generation emit, all rows of the batch "
        "together, over the time of these steps; the prefill is not in it.", HIGHER, SPEED,
        of_sample=statistics.output_rate, views=at(SWEEP, INTERLEAVED, run=0, report=0, markdown=0), brief=HEADLINE,
    )  # fmt: skip
    for percent, (first, brief, what) in PERCENTILES.items():
        name, label, share = f"tpot_p{percent}", f"TPOT p{percent}", percent / 100
        places = at(SWEEP, INTERLEAVED, run=first, report=3, markdown=2) if brief else at(INTERLEAVED, run=first)
        yield Metric(
            f"{name}_s", label, "ms", 1e3, f"Time per output token after the first: {what} (of the steps of "
            "all samples together).", LOWER, SPEED, share=share, brief=brief,
            of_sample=partial(statistics.output_quantile, share=share), views=places,
        )  # fmt: skip
        for end, (side, words) in enumerate((("low", "at least"), ("high", "at most"))):
            of = partial(statistics.interval_end, share=share, end=end)
            meaning = f"The {side}er end of the 95% interval around {label}, for other samples of the same start."
            yield Metric(f"{name}_{side}_s", f"{label} {words}", "ms", 1e3, meaning, LOWER, of=of)
    yield Metric(
        "ttft_s", "TTFT", "ms", 1e3, "Time to first token: the prefill of the prompt and the sampling of the first "
        "token.", LOWER, SPEED,
        of_sample=lambda sample, *_: sample.ttft_s, views=at(SWEEP, INTERLEAVED, run=3, report=2, markdown=3),
        brief="ttft_ms",
    )  # fmt: skip
    yield Metric(
        "mbu", "MBU", "%", 1e2, "Memory bandwidth utilisation: the bytes that a decode step needs over its time, as a "
        "share of the read roof; 100 % is as fast as this device reads memory.", HIGHER,
        of_sample=statistics.bandwidth_utilisation, views=at(SWEEP, run=4, report=1, markdown=1), brief="mbu_percent",
    )  # fmt: skip
    yield Metric(
        "decode_gb_per_s", "decode bandwidth", "GB/s", 1, "Bytes that a decode step needs (weights, keys and values, "
        "each once) over the time of the step; MBU is this over the read roof.", HIGHER,
        of_sample=statistics.decode_bandwidth, views=at(run=5),
    )  # fmt: skip
    yield Metric(
        "moved_gb_per_s", "moved bandwidth", "GB/s", 1, "Bytes that the engine reads and writes for a decode step, "
        "padding and copies included, over the time of the step.",
        of_sample=statistics.moved_bandwidth, views=at(RUN),
    )  # fmt: skip
    yield Metric(
        CALL_RATE, "gpt_fast tokens/s", "tokens/s", 1, "As PyTorch's gpt_fast benchmark counts: all new tokens over "
        "the whole call, prefill included.", HIGHER,
        of_sample=statistics.call_rate, views=at(RUN), gpt_fast="token_per_sec",
    )  # fmt: skip
    yield Metric(
        "gptfast_gb_per_s", "gpt_fast bandwidth", "GB/s", 1, "As PyTorch's gpt_fast benchmark counts: bytes of the "
        "weights times the tokens/s of one row of the whole call, prefill included.", HIGHER,
        of_sample=statistics.call_bandwidth, views=at(RUN), gpt_fast="memory_bandwidth(GB/s)",
    )  # fmt: skip
    yield Metric(
        "peak_memory_bytes", "peak memory", "GB", 1e-9, "Most memory in use at once during the samples: the device's "
        "as torch counts it, or on a CPU that of the whole process.", LOWER, MEMORY,
        of_sample=lambda sample, *_: float(sample.peak_memory_bytes), views=at(SWEEP, REPORT, MARKDOWN, run=8),
        brief="peak_memory_gb",
    )  # fmt: skip


def of_preparing() -> Iterator[Metric]:
    """What it takes before the samples. Compile times are those that can be compared: see `Compilation.metric`."""
    yield Metric(
        "load_s", "load", "s", 1, "Time to make and fill the weights, from a checkpoint or at random.", LOWER,
        of=lambda result: result.load_s,
    )  # fmt: skip
    met = {"cold": "with an empty compile cache", "warm": "where the compile cache held every graph"}
    for state, asked in (("cold", "fresh_cache"), ("warm", "measure_warm_start")):
        yield Metric(
            f"compile_{state}_s", f"{state} compile", "s", 1, "Time from the weights being there until prefill and "
            f"decode have run and are captured, {met[state]}.", LOWER,
            COMPILE, of=partial(statistics.compile_time, name=state), part="compilations", asked_by=asked,
            views=at(run=8, report=4, markdown=4),
        )  # fmt: skip
    yield Metric(
        "gptfast_compile_s", "gpt_fast compile time", "s", 1, "As PyTorch's gpt_fast benchmark counts: compile time "
        "with an empty cache, and the first generation.",
        LOWER, of=statistics.call_compile_time, part="compilations", views=at(RUN), gpt_fast="compilation_time(s)",
    )  # fmt: skip


def of_quality() -> Iterator[Metric]:
    """What `task=quality` is for. The reference's perplexity and the divergence are of bfloat16, whatever type the run
    has."""
    part = "quality"
    yield Metric(
        "perplexity", "perplexity", "", 1, "exp of the mean negative log-likelihood of the held-out text's tokens: of "
        "so many equally likely tokens, so to speak, the model chooses each time.", LOWER,
        QUALITY, of=statistics.perplexity, part=part, per_token=PerToken(lambda found: found.nll, is_logarithm=True),
        views=at(SWEEP, REPORT, MARKDOWN, run=7), brief="perplexity",
    )  # fmt: skip
    yield Metric(
        "reference_perplexity", "reference perplexity", "", 1, "Perplexity of the same text under the unquantised "
        "model in bfloat16 and the eager engine.", LOWER,
        of=statistics.reference_perplexity, part=part, views=at(run=7),
    )  # fmt: skip
    yield Metric(
        "bits_per_byte", "bits per byte", "bits", 1, "Negative log-likelihood of the held-out text over its bytes, "
        "which compares models of different tokenizers.", LOWER, of=statistics.bits_per_byte, part=part,
        views=at(run=7),
    )  # fmt: skip
    yield Metric(
        "kl_divergence", "KL divergence", "nats", 1, "Kullback-Leibler divergence of the engine's distribution of the "
        "next token from the unquantised reference's, mean over the text's tokens; 0 where both are the same.", LOWER,
        QUALITY, of=statistics.divergence, part=part, per_token=PerToken(lambda found: found.kl),
        views=at(REPORT, MARKDOWN, run=7),
    )  # fmt: skip
    yield Metric(
        "top1_agreement", "top-1 agreement", "%", 1e2, "Share of the text's tokens at which the engine and the "
        "unquantised reference prefer the same next token.", HIGHER, QUALITY,
        of=statistics.agreement, part=part,
        per_token=PerToken(lambda found: [float(same) for same in found.same_top]), views=at(run=7),
    )  # fmt: skip


def of_energy() -> Iterator[Metric]:
    """Without what the device uses while idle, but for watts. A token is one of the prompt in prefill, a new one in
    decode."""
    part = "energy"
    yield Metric(
        "idle_w", "idle power", "W", 1, "Power that the device draws while nothing runs, with the model in memory.",
        LOWER, of=lambda found: found.idle_w, part=part, views=at(run=7),
    )  # fmt: skip
    phases = {"prefill": "of the prompt", "decode": "generated"}
    for phase in phases:
        yield Metric(
            f"{phase}_w", f"{phase} power", "W", 1, f"Mean power that the device draws during {phase}, its idle power "
            "included.", of=partial(statistics.watts, phase=phase), part=part, views=at(run=7),
        )  # fmt: skip
    for phase, token in phases.items():
        yield Metric(
            f"{phase}_joules_per_token", f"{phase} energy", "J/token", 1, f"Energy that {phase} takes for each token "
            f"{token}, without what the device uses while idle.", LOWER, ENERGY, part=part,
            of=partial(statistics.joules_per_token, phase=phase),
            views=at(REPORT, MARKDOWN, run=7) if phase == "decode" else at(run=7),
        )  # fmt: skip
    for phase, token in phases.items():
        yield Metric(
            f"{phase}_tokens_per_joule", f"{phase} efficiency", "tokens/J", 1, f"Tokens {token} for each joule that "
            f"{phase} takes, without what the device uses while idle.", HIGHER, part=part,
            of=partial(statistics.tokens_per_joule, phase=phase), views=at(run=7),
        )  # fmt: skip


def of_step() -> Iterator[Metric]:
    """Of the one step that was profiled, and of the mean step: bytes."""
    part = "breakdown"
    yield Metric(
        "breakdown_step_s", "profiled step", "ms", 1e3, "Time of the one decode step that was profiled "
        "(task.breakdown=true), which profiling makes longer.", of=lambda found: found.step_s, part=part,
    )  # fmt: skip
    yield Metric(
        "breakdown_gaps_s", "gaps of the profiled step", "ms", 1e3, "Time of the profiled decode step in which no "
        "kernel runs.", of=lambda found: found.gaps_s, part=part,
    )  # fmt: skip
    yield Metric(
        "breakdown_launches", "launches of the profiled step", "", 1, "Kernels that the profiled decode step launches.",
        of=lambda found: float(len(found.launches)), part=part,
    )  # fmt: skip


def of_circumstances() -> Iterator[Metric]:
    """What the other numbers are of."""
    for name, (label, unit, what) in STATES.items():
        meaning = f"{what}: median of the readings during the valid samples."
        yield Metric(name, label, unit, 1, meaning, of=partial(statistics.device_state, name=name))
    bytes_of = statistics.step_bytes
    yield Metric(
        "weight_gb_per_step", "weights per step", "GB", 1, "Bytes of the weights that a decode step needs; of a "
        "mixture, those of the experts that some row chose.", of=lambda result: bytes_of(result).weights / 1e9,
    )  # fmt: skip
    yield Metric(
        "gb_per_step", "bytes per step", "GB", 1, "Bytes that a decode step needs: weights, and keys and values of "
        "the tokens that it attends to.", of=lambda result: bytes_of(result).needed / 1e9,
    )  # fmt: skip
    yield Metric(
        "moved_gb_per_step", "bytes moved per step", "GB", 1, "Bytes that the engine reads and writes for a decode "
        "step, padding and copies included.", of=lambda result: bytes_of(result).moved / 1e9,
    )  # fmt: skip
    yield Metric(
        "read_roof_gb_per_s", "read roof", "GB/s", 1, "Measured peak read bandwidth of this device (the memory "
        "roofline): the highest rate at which it was seen to read memory.", HIGHER,
        of=lambda result: result.roof.gb_per_s, views=at(run=6),
    )  # fmt: skip
    valid = statistics.valid_samples
    yield Metric(
        "samples_valid", "valid samples", "", 1, "Samples that count: nothing was compiled during them.",
        of=lambda result: float(len(valid(result))),
    )  # fmt: skip
    yield Metric(
        "samples_all", "all samples", "", 1, "Samples that were taken, those included during which something was "
        "compiled.", of=lambda result: float(len(result.samples)),
    )  # fmt: skip
    yield Metric(
        "samples_throttled", "throttled samples", "", 1, "Valid samples during which power or heat made the device "
        "lower its clocks.", LOWER,
        of=lambda result: float(sum(sample.throttled for sample in valid(result))),
    )  # fmt: skip
    yield Metric(
        "finite", "finite", "", 1, "1 where all logits and cached keys and values are finite numbers, else 0.", HIGHER,
        of=lambda result: float(all(sample.finite for sample in result.samples)),
    )  # fmt: skip


def of_kernels() -> Iterator[Metric]:
    """One implementation of one kernel, by `task=kernels`: recorded under the kernel's name and its own."""
    yield Metric(
        KERNEL_TIME, "", "µs", 1e6, "Time of one call of a kernel: median of the rounds.", LOWER, SPEED,
        views=at(KERNELS),
    )  # fmt: skip
    yield Metric(
        "moved_bytes", "", "MB", 1e-6, "Bytes that one call of a kernel reads and writes.", views=at(KERNELS)
    )  # fmt: skip
    yield Metric(
        "gb_per_s", "", "GB/s", 1, "Bytes that one call of a kernel reads and writes, over its time.", HIGHER,
        views=at(KERNELS),
    )  # fmt: skip
    yield Metric(
        "share_of_roof", "of the roof", "%", 1e2, "Rate at which a kernel reads and writes, as a share of the read "
        "roof.", HIGHER, views=at(KERNELS),
    )  # fmt: skip
    yield Metric(
        "flops_utilisation", "of peak flops", "%", 1e2, "Floating-point operations of one call of a kernel over its "
        "time, as a share of the device's peak.", HIGHER, views=at(KERNELS),
    )  # fmt: skip


for row in (
    *(*of_samples(), *of_preparing(), *of_quality(), *of_energy(), *of_step(), *of_circumstances(), *of_kernels()),
):
    register(row)
