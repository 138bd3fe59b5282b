"""The registry of metrics: the name of each number, and how it is computed, compared and shown, one row each.

Records, JSON and MLflow's full list of metrics hold values in base units under names that end in the unit (`tpot_p50_s`
in seconds, `peak_memory_bytes` in bytes, `mbu` as a fraction). Tables, charts, the report and MLflow's `brief/` metrics
show them with their label, unit and factor: TPOT p50 in ms, peak memory in GB, MBU in %. Everything that lists metrics
reads the registry; a new metric is a row here, or a call of `register` in a plugin, and a formula.
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
    """Which values of a metric are better."""

    higher = "higher is better"
    lower = "lower is better"
    neither = "neither is better"


@dataclass(frozen=True)
class Kind:
    """What the metrics of one kind share when they are compared."""

    name: str
    """Key of the kind, under which a baseline sets margins and the reasons to call a machine busy are sorted."""
    noun: str
    """Name of the kind in messages and tables."""
    margin: float
    """Smallest relative difference that gets a verdict (0.01 is 1%): ratios nearer to 1 get none, however narrow their
    interval is."""
    better: str
    """Verdict on the better of two values."""
    worse: str
    """Verdict on the worse of two values."""
    is_counted: bool = False
    """Whether the value is counted, not timed: on a GPU it is then the same in every process, and the samples of one
    process say nothing about the variance of others."""


SPEED = Kind("speed", "speed", 0.01, "faster", "slower")
COMPILE = Kind("compile", "compile time", 0.10, "faster", "slower")
MEMORY = Kind("memory", "memory", 0.01, "less", "more", is_counted=True)
ENERGY = Kind("energy", "energy", 0.03, "less", "more")
QUALITY = Kind("quality", "quality", 0.005, "better", "worse")
KINDS = {kind.name: kind for kind in (SPEED, COMPILE, MEMORY, QUALITY, ENERGY)}


class View(Enum):
    """Places that show some of the metrics and leave out the others."""

    run = "table of a run in the terminal"
    sweep = "table of a sweep in the terminal and in its parent run in MLflow"
    interleaved = "what `gptbench ab` compares, and what MLflow gets of each of its samples"
    report = "table of runs in the report"
    markdown = "Markdown that `gptbench export` writes"
    kernels = "table of `task=kernels`, whose metrics are fields of `KernelMetrics`"


@dataclass(frozen=True)
class PerToken:
    """What each token of a predicted text contributes to a metric."""

    values: Callable[[Any], Sequence[float]]
    """Function of `Predictions` that returns one value per token."""
    is_logarithm: bool = False
    """Whether the metric is exp of the mean of the values; otherwise it is their mean."""


@dataclass(frozen=True)
class Metric:
    """One number that a record holds, or that is computed from a record."""

    name: str
    """Name in records and JSON; it ends in the unit of the recorded value."""
    label: str
    """Name in tables and charts, without the unit."""
    unit: str
    """Unit in tables and charts; empty for a plain number."""
    factor: float = 1.0
    """Factor from the recorded value to `unit`."""
    meaning: str = ""
    """Definition of the metric in one or two sentences that can be read alone."""
    direction: Direction = Direction.neither
    """Which values are better."""
    kind: Kind | None = None
    """How `gptbench compare` and `gptbench gate` judge it; None for a metric that they do not compare."""
    of_sample: Callable[[Sample, Traffic, Roof], float | None] | None = None
    """Function that returns the value of one sample. The value of a run is the median over its valid samples, or the
    percentile given by `share`."""
    share: float | None = None
    """For a percentile of decode steps, its share (0.99 for p99). The percentile of a run is that of the pooled steps
    of its valid samples."""
    of: Callable[[Any], float | None] | None = None
    """Function that returns the value of a run, for a metric without `of_sample`. Its argument is the result, or the
    field of it named by `part`; it returns None where the run has no value."""
    part: str = ""
    """Field of the result that is passed to `of`, and without which there is no value; empty for the whole result."""
    per_token: PerToken | None = None
    """Values per token that the metric is the mean of, for a comparison token by token; None for a metric that is not
    computed from a text."""
    asked_by: str | None = None
    """Option of the engine's section under which every run has the metric; None where no option ensures it."""
    views: Mapping[View, int] = field(default_factory=dict)
    """Views that show the metric, with its position in each: lower numbers come first, equal ones in the order of
    registration."""
    brief: str | None = None
    """Name among MLflow's `brief/` metrics, ending in the displayed unit; None for a metric that is not among them."""
    gpt_fast: str | None = None
    """Name of the metric in PyTorch's gpt_fast benchmark; None for a metric that gpt_fast does not report."""

    def __post_init__(self) -> None:
        if self.kind is not None and self.direction is Direction.neither:
            raise UserError(
                f"metric={self.name}: expected a direction, because a metric of kind {self.kind.name} is compared"
            )

    @property
    def heading(self) -> str:
        """Label and unit as a column heading: `TPOT p50 (ms)`, or `% of the roof` for a metric of a kernel."""
        if View.kernels in self.views:
            return f"{self.unit} {self.label}".strip()
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def text(self, value: float | None) -> str:
        """Return a recorded value as text in the displayed unit; empty for None."""
        return "" if value is None else number(value * self.factor)

    @property
    def is_counted(self) -> bool:
        """Whether the value is counted, not timed: see `Kind.is_counted`."""
        return self.kind is not None and self.kind.is_counted

    @property
    def varies_in_run(self) -> bool:
        """Whether the samples of one run show the variance of the metric."""
        return self.of_sample is not None and not self.is_counted

    @property
    def words(self) -> tuple[str, str]:
        """Verdicts on a lower value and on a higher one."""
        assert self.kind is not None
        better, worse = self.kind.better, self.kind.worse
        return (worse, better) if self.direction is Direction.higher else (better, worse)


METRICS: dict[str, Metric] = {}
"""All metrics by name, in the order in which tables show them. Only `register` changes it."""


def register(metric: Metric) -> Metric:
    """Add a metric to the registry: it is then computed for every record and shown in its views.

    Raises:
        UserError: a metric of that name is registered already.
    """
    if metric.name in METRICS:
        raise UserError(f"metric={metric.name}: expected a new name: a metric of that name is registered already")
    METRICS[metric.name] = metric
    return metric


def metric_of(name: str) -> Metric:
    """Return the metric of that name. The name may end in that of a kernel's metric
    (`gemv/D4096/int8/kernel/gb_per_s`); for an unknown one, such as that of a plugin which is not installed, the unit
    follows from the name."""
    if (known := METRICS.get(name)) is not None:
        return known
    if (known := METRICS.get(name.rpartition("/")[2])) is not None and KERNELS in known.views:
        return replace(known, name=name, label=name, views={})
    label = name.replace("_", " ") if name.endswith("_s") else name
    return Metric(name, label, next((unit for end, unit in UNITS.items() if name.endswith(end)), ""))


UNITS = {"tokens_per_s": "tokens/s", "gb_per_s": "GB/s", "_s": "s", "_w": "W", "_bytes": "B", "_mhz": "MHz"}
"""Unit by the end of a metric's name."""


def in_order(names: Iterable[str]) -> list[str]:
    """Return names of metrics in the order of the registry, then the unknown ones alphabetically."""
    order = {name: index for index, name in enumerate(METRICS)}
    return sorted(set(names), key=lambda name: (order.get(name, len(order)), name))


def shown_in(view: View) -> list[Metric]:
    """Return the metrics of a view in its order."""
    return sorted(
        (metric for metric in METRICS.values() if view in metric.views), key=lambda metric: metric.views[view]
    )


def compared() -> list[Metric]:
    """Return the metrics of runs that get a verdict, sorted by kind."""
    kinds = list(KINDS.values())
    of_runs = (metric for metric in METRICS.values() if KERNELS not in metric.views)
    ranked = [(kinds.index(metric.kind), metric) for metric in of_runs if metric.kind is not None]
    return [metric for _, metric in sorted(ranked, key=lambda pair: pair[0])]


# The metrics

HEADLINE = "decode_tokens_per_s"
"""Metric that ranks runs, that `gptbench ab` measures until its interval is narrow, and that charts and summaries are
about."""
STEP = "tpot_p50_s"
"""Metric of the median decode step of a run."""
CALL_RATE = "gptfast_tokens_per_s"
"""Metric of gpt_fast's tokens/s, which include the prefill."""
KERNEL_TIME = "seconds"
"""Metric of the time of one implementation of a kernel, measured by `task=kernels`."""

RUN, SWEEP, INTERLEAVED, REPORT, MARKDOWN, KERNELS = View
HIGHER, LOWER = Direction.higher, Direction.lower
LAST = 9
"""Position in a view where none is given."""
PERCENTILES = {
    50: (1, "tpot_p50_ms", "half of the decode steps took no longer than this"),
    90: (LAST, None, "9 of 10 decode steps took no longer than this"),
    99: (2, "tpot_p99_ms", "99 of 100 decode steps took no longer than this, and 1 of 100 did"),
}
"""Percentiles of decode steps: position in the table of a run, name among MLflow's `brief/` metrics, and meaning."""
STATES = {
    "clock_mhz": ("clock", "MHz", "Clock rate of the device's processors"),
    "memory_clock_mhz": ("memory clock", "MHz", "Clock rate of the device's memory"),
    "power_w": ("power", "W", "Power that the device draws"),
    "temperature_c": ("temperature", "°C", "Temperature of the device"),
}
"""Readings of a device during the samples, which are fields of `DeviceState`: label, unit and meaning."""


def at(*views: View, **first: int) -> dict[View, int]:
    """Return positions in views; a view that is passed without a number gets `LAST`."""
    return dict.fromkeys(views, LAST) | {View[name]: number for name, number in first.items()}


def of_samples() -> Iterator[Metric]:
    """Yield the metrics that each sample has, and the intervals around them."""
    yield Metric(
        HEADLINE, "decode", "tokens/s", 1, "Decode throughput: tokens that the decode steps of a generation emit, for "
        "all rows of the batch together, over the time of these steps. Prefill is excluded.", HIGHER, SPEED,
        of_sample=statistics.output_rate, views=at(SWEEP, INTERLEAVED, run=0, report=0, markdown=0), brief=HEADLINE,
    )  # fmt: skip
    for percent, (first, brief, what) in PERCENTILES.items():
        name, label, share = f"tpot_p{percent}", f"TPOT p{percent}", percent / 100
        places = at(SWEEP, INTERLEAVED, run=first, report=3, markdown=2) if brief else at(INTERLEAVED, run=first)
        yield Metric(
            f"{name}_s", label, "ms", 1e3, f"Time per output token after the first: {what} (steps of all "
            "samples pooled).", LOWER, SPEED, share=share, brief=brief,
            of_sample=partial(statistics.output_quantile, share=share), views=places,
        )  # fmt: skip
        for end, (side, edge, words) in enumerate((("low", "Lower", "at least"), ("high", "Upper", "at most"))):
            of = partial(statistics.interval_end, share=share, end=end)
            meaning = f"{edge} end of the 95% interval around {label}, for further samples of the same process."
            yield Metric(f"{name}_{side}_s", f"{label} {words}", "ms", 1e3, meaning, LOWER, of=of)
    yield Metric(
        "ttft_s", "TTFT", "ms", 1e3, "Time to first token: the prefill of the prompt and the sampling of the first "
        "token.", LOWER, SPEED,
        of_sample=lambda sample, *_: sample.ttft_s, views=at(SWEEP, INTERLEAVED, run=3, report=2, markdown=3),
        brief="ttft_ms",
    )  # fmt: skip
    yield Metric(
        "mbu", "MBU", "%", 1e2, "Memory bandwidth utilisation: bytes that a decode step needs over its time, as a "
        "share of the read roof. At 100% decode is as fast as this device can read memory.", HIGHER,
        of_sample=statistics.bandwidth_utilisation, views=at(SWEEP, run=4, report=1, markdown=1), brief="mbu_percent",
    )  # fmt: skip
    yield Metric(
        "decode_gb_per_s", "decode bandwidth", "GB/s", 1, "Bytes that a decode step needs (weights, keys and values, "
        "each once) over the time of the step. MBU is this rate over the read roof.", HIGHER,
        of_sample=statistics.decode_bandwidth, views=at(run=5),
    )  # fmt: skip
    yield Metric(
        "moved_gb_per_s", "moved bandwidth", "GB/s", 1, "Bytes that the engine reads and writes for a decode step, "
        "padding and copies included, over the time of the step.",
        of_sample=statistics.moved_bandwidth, views=at(RUN),
    )  # fmt: skip
    yield Metric(
        CALL_RATE, "gpt_fast tokens/s", "tokens/s", 1, "Throughput as PyTorch's gpt_fast benchmark reports it: all "
        "new tokens over the time of the whole call, prefill included.", HIGHER,
        of_sample=statistics.call_rate, views=at(RUN), gpt_fast="token_per_sec",
    )  # fmt: skip
    yield Metric(
        "gptfast_gb_per_s", "gpt_fast bandwidth", "GB/s", 1, "Bandwidth as PyTorch's gpt_fast benchmark reports it: "
        "bytes of the weights times the tokens/s of one row over the whole call, prefill included.", HIGHER,
        of_sample=statistics.call_bandwidth, views=at(RUN), gpt_fast="memory_bandwidth(GB/s)",
    )  # fmt: skip
    yield Metric(
        "peak_memory_bytes", "peak memory", "GB", 1e-9, "Highest memory use during the samples: what torch has "
        "allocated on a GPU, or the memory of the whole process on a CPU.", LOWER, MEMORY,
        of_sample=lambda sample, *_: float(sample.peak_memory_bytes), views=at(SWEEP, REPORT, MARKDOWN, run=8),
        brief="peak_memory_gb",
    )  # fmt: skip


def of_preparing() -> Iterator[Metric]:
    """Yield the metrics of what happens before the samples. Compile times are those that can be compared: see
    `Compilation.metric`."""
    yield Metric(
        "load_s", "load", "s", 1, "Time to allocate the weights and fill them, from a checkpoint or at random.", LOWER,
        of=lambda result: result.load_s,
    )  # fmt: skip
    met = {"cold": "with an empty compile cache", "warm": "with every graph in the compile cache"}
    for state, asked in (("cold", "fresh_cache"), ("warm", "measure_warm_start")):
        yield Metric(
            f"compile_{state}_s", f"{state} compile", "s", 1, "Time after loading the weights until prefill "
            f"and decode have run and are captured, {met[state]}.", LOWER,
            COMPILE, of=partial(statistics.compile_time, name=state), part="compilations", asked_by=asked,
            views=at(run=8, report=4, markdown=4),
        )  # fmt: skip
    yield Metric(
        "gptfast_compile_s", "gpt_fast compile time", "s", 1, "Compile time as PyTorch's gpt_fast benchmark reports "
        "it: compiling with an empty cache, and the first generation.",
        LOWER, of=statistics.call_compile_time, part="compilations", views=at(RUN), gpt_fast="compilation_time(s)",
    )  # fmt: skip


def of_quality() -> Iterator[Metric]:
    """Yield the metrics of `task=quality`. The reference's perplexity and the divergence refer to bfloat16, whatever
    dtype the run has."""
    part = "quality"
    yield Metric(
        "perplexity", "perplexity", "", 1, "exp of the mean negative log-likelihood of the held-out text's tokens: the "
        "model is as uncertain as if it chose among that many equally likely tokens.", LOWER,
        QUALITY, of=statistics.perplexity, part=part, per_token=PerToken(lambda predictions: predictions.nll,
        is_logarithm=True),
        views=at(SWEEP, REPORT, MARKDOWN, run=7), brief="perplexity",
    )  # fmt: skip
    yield Metric(
        "reference_perplexity", "reference perplexity", "", 1, "Perplexity of the same text under the unquantised "
        "model in bfloat16 and the eager engine.", LOWER,
        of=statistics.reference_perplexity, part=part, views=at(run=7),
    )  # fmt: skip
    yield Metric(
        "bits_per_byte", "bits per byte", "bits", 1, "Negative log-likelihood of the held-out text, in bits, over "
        "its bytes. It makes models with different tokenizers comparable.", LOWER, of=statistics.bits_per_byte,
        part=part,
        views=at(run=7),
    )  # fmt: skip
    yield Metric(
        "kl_divergence", "KL divergence", "nats", 1, "Kullback-Leibler divergence of the engine's next-token "
        "distribution from that of the unquantised reference, mean over the text's tokens. It is 0 where both "
        "agree.", LOWER,
        QUALITY, of=statistics.divergence, part=part, per_token=PerToken(lambda predictions: predictions.kl),
        views=at(REPORT, MARKDOWN, run=7),
    )  # fmt: skip
    yield Metric(
        "top1_agreement", "top-1 agreement", "%", 1e2, "Share of the text's tokens at which the engine and the "
        "unquantised reference prefer the same next token.", HIGHER, QUALITY,
        of=statistics.agreement, part=part,
        per_token=PerToken(lambda predictions: [float(same) for same in predictions.same_top]), views=at(run=7),
    )  # fmt: skip


def of_energy() -> Iterator[Metric]:
    """Yield the metrics of energy. All but powers exclude the idle power. A token is one of the prompt in prefill, and
    a new one in decode."""
    part = "energy"
    yield Metric(
        "idle_w", "idle power", "W", 1, "Power that the device draws while idle, with the model in memory.",
        LOWER, of=lambda energy: energy.idle_w, part=part, views=at(run=7),
    )  # fmt: skip
    phases = {"prefill": "prompt token", "decode": "generated token"}
    for phase in phases:
        yield Metric(
            f"{phase}_w", f"{phase} power", "W", 1, f"Mean power that the device draws during {phase}, idle power "
            "included.", of=partial(statistics.watts, phase=phase), part=part, views=at(run=7),
        )  # fmt: skip
    for phase, token in phases.items():
        yield Metric(
            f"{phase}_joules_per_token", f"{phase} energy", "J/token", 1, f"Energy that {phase} uses per "
            f"{token}, above the idle power of the device.", LOWER, ENERGY, part=part,
            of=partial(statistics.joules_per_token, phase=phase),
            views=at(REPORT, MARKDOWN, run=7) if phase == "decode" else at(run=7),
        )  # fmt: skip
    for phase, token in phases.items():
        yield Metric(
            f"{phase}_tokens_per_joule", f"{phase} efficiency", "tokens/J", 1, f"Number of {token}s per "
            f"joule that {phase} uses above the idle power of the device.", HIGHER, part=part,
            of=partial(statistics.tokens_per_joule, phase=phase), views=at(run=7),
        )  # fmt: skip


def of_step() -> Iterator[Metric]:
    """Yield the metrics of the profiled decode step."""
    part = "breakdown"
    yield Metric(
        "breakdown_step_s", "profiled step", "ms", 1e3, "Time of the decode step that was profiled "
        "(task.breakdown=true). Profiling makes it longer.", of=lambda breakdown: breakdown.step_s, part=part,
    )  # fmt: skip
    yield Metric(
        "breakdown_gaps_s", "gaps of the profiled step", "ms", 1e3, "Time within the profiled decode step during "
        "which no kernel runs.", of=lambda breakdown: breakdown.gaps_s, part=part,
    )  # fmt: skip
    yield Metric(
        "breakdown_launches", "launches of the profiled step", "", 1, "Number of kernels that the profiled decode "
        "step launches.",
        of=lambda breakdown: float(len(breakdown.launches)), part=part,
    )  # fmt: skip


def of_circumstances() -> Iterator[Metric]:
    """Yield the metrics that describe the conditions of the others."""
    for name, (label, unit, what) in STATES.items():
        meaning = f"{what}: median of the readings during the valid samples."
        yield Metric(name, label, unit, 1, meaning, of=partial(statistics.device_state, name=name))
    bytes_of = statistics.step_bytes
    yield Metric(
        "weight_gb_per_step", "weights per step", "GB", 1, "Bytes of the weights that a decode step needs; for a "
        "mixture of experts, only those of the experts that some row chose.",
        of=lambda result: bytes_of(result).weights / 1e9,
    )  # fmt: skip
    yield Metric(
        "gb_per_step", "bytes per step", "GB", 1, "Bytes that a decode step needs: the weights, and the keys and "
        "values of the tokens that it attends to.", of=lambda result: bytes_of(result).needed / 1e9,
    )  # fmt: skip
    yield Metric(
        "moved_gb_per_step", "bytes moved per step", "GB", 1, "Bytes that the engine reads and writes for a decode "
        "step, padding and copies included.", of=lambda result: bytes_of(result).moved / 1e9,
    )  # fmt: skip
    yield Metric(
        "read_roof_gb_per_s", "read roof", "GB/s", 1, "Measured peak read bandwidth of this device (the memory "
        "roofline): the highest rate at which it has read memory in any measurement so far.", HIGHER,
        of=lambda result: result.roof.gb_per_s, views=at(run=6),
    )  # fmt: skip
    valid = statistics.valid_samples
    yield Metric(
        "samples_valid", "valid samples", "", 1, "Number of samples that count: those during which nothing was "
        "compiled.",
        of=lambda result: float(len(valid(result))),
    )  # fmt: skip
    yield Metric(
        "samples_all", "all samples", "", 1, "Number of samples taken, including those during which something was "
        "compiled.", of=lambda result: float(len(result.samples)),
    )  # fmt: skip
    yield Metric(
        "samples_throttled", "throttled samples", "", 1, "Number of valid samples during which the device was "
        "power- or thermal-throttled.", LOWER,
        of=lambda result: float(sum(sample.throttled for sample in valid(result))),
    )  # fmt: skip
    yield Metric(
        "finite", "finite", "", 1, "1 if all logits and all cached keys and values are finite numbers, otherwise 0.",
        HIGHER,
        of=lambda result: float(all(sample.finite for sample in result.samples)),
    )  # fmt: skip


def of_kernels() -> Iterator[Metric]:
    """Yield the metrics of one implementation of one kernel, measured by `task=kernels`: they are recorded under the
    names of kernel and implementation."""
    yield Metric(
        KERNEL_TIME, "", "µs", 1e6, "Time of one call of a kernel, median over the rounds.", LOWER, SPEED,
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
        "share_of_roof", "of the roof", "%", 1e2, "Rate at which a kernel reads and writes memory, as a share of "
        "the read roof.", HIGHER, views=at(KERNELS),
    )  # fmt: skip
    yield Metric(
        "flops_utilisation", "of peak flops", "%", 1e2, "Floating-point operations of one call of a kernel over its "
        "time, as a share of the device's peak.", HIGHER, views=at(KERNELS),
    )  # fmt: skip


for row in (
    *(*of_samples(), *of_preparing(), *of_quality(), *of_energy(), *of_step(), *of_circumstances(), *of_kernels()),
):
    register(row)
