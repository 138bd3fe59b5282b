"""How a person reads a metric: one name, one unit and one factor, wherever it is shown.

Records, JSON and MLflow's full list of metrics hold values in base units under names that end in them (`tpot_p50_s` in
seconds, `peak_memory_bytes` in bytes, `mbu` as a fraction). Tables, charts, the report and MLflow's `brief/` metrics
show what is written here: TPOT p50 in ms, peak memory in GB, MBU in %.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Display:
    """How one metric is shown."""

    label: str
    """Name that a person reads, without the unit."""
    unit: str
    """Unit of what is shown; empty for a plain number."""
    factor: float = 1.0
    """What the recorded value is multiplied by to be in that unit."""
    key: str | None = None
    """Name in MLflow's `brief/` metrics, which ends in the unit shown; None where a metric is not among them."""

    @property
    def heading(self) -> str:
        """Label and unit, as the head of a column: `TPOT p50 (ms)`."""
        return f"{self.label} ({self.unit})" if self.unit else self.label


DISPLAYS: dict[str, Display] = {
    "decode_tokens_per_s": Display("decode", "tokens/s", key="decode_tokens_per_s"),
    "tpot_p50_s": Display("TPOT p50", "ms", 1e3, "tpot_p50_ms"),
    "tpot_p50_low_s": Display("TPOT p50 at least", "ms", 1e3),
    "tpot_p50_high_s": Display("TPOT p50 at most", "ms", 1e3),
    "tpot_p90_s": Display("TPOT p90", "ms", 1e3),
    "tpot_p90_low_s": Display("TPOT p90 at least", "ms", 1e3),
    "tpot_p90_high_s": Display("TPOT p90 at most", "ms", 1e3),
    "tpot_p99_s": Display("TPOT p99", "ms", 1e3, "tpot_p99_ms"),
    "tpot_p99_low_s": Display("TPOT p99 at least", "ms", 1e3),
    "tpot_p99_high_s": Display("TPOT p99 at most", "ms", 1e3),
    "ttft_s": Display("TTFT", "ms", 1e3, "ttft_ms"),
    "decode_gb_per_s": Display("decode bandwidth", "GB/s"),
    "moved_gb_per_s": Display("moved bandwidth", "GB/s"),
    "mbu": Display("MBU", "%", 1e2, "mbu_percent"),
    "seed_tokens_per_s": Display("gpt_fast's rate", "tokens/s"),
    "seed_gb_per_s": Display("gpt_fast's bandwidth", "GB/s"),
    "peak_memory_bytes": Display("peak memory", "GB", 1e-9, "peak_memory_gb"),
    "load_s": Display("load", "s"),
    "compile_cold_s": Display("compile cold", "s"),
    "compile_warm_s": Display("compile warm", "s"),
    "compile_mixed_s": Display("compile mixed", "s"),
    "seed_compile_s": Display("gpt_fast's compile time", "s"),
    "perplexity": Display("perplexity", "", key="perplexity"),
    "reference_perplexity": Display("reference perplexity", ""),
    "bits_per_byte": Display("bits per byte", "bits"),
    "kl_divergence": Display("KL divergence", "nats"),
    "top1_agreement": Display("top-1 agreement", "%", 1e2),
    "idle_w": Display("idle power", "W"),
    "prefill_w": Display("prefill power", "W"),
    "decode_w": Display("decode power", "W"),
    "prefill_joules_per_token": Display("prefill energy", "J/token"),
    "decode_joules_per_token": Display("decode energy", "J/token"),
    "prefill_tokens_per_joule": Display("prefill efficiency", "tokens/J"),
    "decode_tokens_per_joule": Display("decode efficiency", "tokens/J"),
    "breakdown_step_s": Display("profiled step", "ms", 1e3),
    "breakdown_gaps_s": Display("gaps of the profiled step", "ms", 1e3),
    "breakdown_launches": Display("launches of the profiled step", ""),
    "clock_mhz": Display("clock", "MHz"),
    "memory_clock_mhz": Display("memory clock", "MHz"),
    "power_w": Display("power", "W"),
    "temperature_c": Display("temperature", "°C"),
    "weight_gb_per_step": Display("weights per step", "GB"),
    "gb_per_step": Display("bytes per step", "GB"),
    "moved_gb_per_step": Display("bytes moved per step", "GB"),
    "read_roof_gb_per_s": Display("read roof", "GB/s"),
    "samples_valid": Display("valid samples", ""),
    "samples_all": Display("all samples", ""),
    "samples_throttled": Display("throttled samples", ""),
    "finite": Display("finite", ""),
}
"""Metric of a run's summary to how it is shown, in the order in which tables show them. "At least" and "at most" are
the ends of a 95% interval."""


def display(metric: str) -> Display:
    """How a metric is shown; one that is not in `DISPLAYS`, such as a kernel's, by its own name as it is recorded."""
    return DISPLAYS.get(metric) or Display(
        metric.replace("_", " ") if metric.endswith("_s") else metric, unit_of(metric)
    )


def unit_of(metric: str) -> str:
    """The unit that a name ends in; empty where it ends in none."""
    units = {"tokens_per_s": "tokens/s", "gb_per_s": "GB/s", "_s": "s", "_w": "W", "_bytes": "B", "_mhz": "MHz"}
    return next((unit for end, unit in units.items() if metric.endswith(end)), "")


def in_display_order(metrics: set[str]) -> list[str]:
    """Metrics in the order of `DISPLAYS`, then the others by name."""
    order = {name: index for index, name in enumerate(DISPLAYS)}
    return sorted(metrics, key=lambda name: (order.get(name, len(order)), name))
