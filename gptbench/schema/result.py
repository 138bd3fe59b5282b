"""The record of a run, as stored in `result.json`: raw samples with units. Statistics are computed when it is read."""

import contextlib
import functools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from gptbench.base.numbers import number
from gptbench.schema.breakdown import Breakdown, write_trace
from gptbench.schema.busy import busy_samples, by_kind, loads_of, shared, slow_probes, spare_cores
from gptbench.schema.compilation import Compilation, costs
from gptbench.schema.energy import Energy
from gptbench.schema.identity import digest
from gptbench.schema.labels import PROMPT_DIGITS
from gptbench.schema.machine import Load
from gptbench.schema.metrics import METRICS, Metric
from gptbench.schema.publication import FAILED, FINISHED, Publication, write_table
from gptbench.schema.quality import Predictions
from gptbench.schema.record import Measured
from gptbench.schema.restore import of_list, require
from gptbench.schema.sample import Sample, Traffic, WarmUp
from gptbench.schema.statistics import valid_samples
from gptbench.schema.steps import Steps
from gptbench.schema.summary import part_metrics, sample_metrics, summary

GPT_FAST = "gpt_fast"
"""Name of the workload and of the engine of PyTorch's gpt_fast benchmark."""
SEPARATOR = "\n\n----\n\n"
"""Separator between the texts of two answers."""


@dataclass(frozen=True)
class CheckpointInfo:
    """Checkpoint that the weights were read from."""

    folder: str
    files: list[str]
    bytes: int
    """Total size of the files in bytes."""
    headers_sha256: str
    """Hash of the name, file, shape and dtype of every tensor, and of the size of every file. Checkpoints with equal
    headers have equal hashes, whatever their weights are."""


@dataclass(kw_only=True)
class Measurement:
    """Measurement of one engine: the fields that its record adds to those of every record."""

    load_s: float
    """Seconds to allocate the weights and fill them."""
    prepare_peak_memory_bytes: int
    """Peak memory use in bytes while the weights were made, and the engine prepared and warmed up."""
    traffic: Traffic
    """Bytes that the decode steps move."""
    compilations: list[Compilation]
    """Compilations: that before the samples, and, if measured, that of a second process."""
    warm_ups: list[WarmUp]
    """Generations before the samples."""
    samples: list[Sample]
    """Samples in the order in which they were taken."""
    checkpoint: CheckpointInfo | None = None
    """Checkpoint that the weights were read from; None if they are seeded random numbers."""
    quality: Predictions | None = None
    """Predictions of a text, if the task evaluates quality."""
    engine_details: dict[str, Any] = field(default_factory=dict)
    """Properties of the engine beyond its configuration, such as the tiles of its kernels."""
    tune_s: float | None = None
    """Seconds of autotuning tiles, if that was asked for; it is not part of any compile time."""
    reused: str | None = None
    """Start of the earlier job of the sweep whose weights this one took over (`load_s` is that job's), ISO 8601. None
    if it made its own."""
    shared_compile_s: float | None = None
    """Seconds that earlier jobs of the sweep spent on compiling what this one took over; None if it took over
    nothing."""
    breakdown: Breakdown | None = None
    """Profile of one decode step, if the task asks for it."""
    energy: Energy | None = None
    """Energy of prefill and decode, if the task asks for it and the device reports it."""


@dataclass(kw_only=True)
class Result(Measurement, Measured):
    """Record of one run."""

    FILE: ClassVar[str] = "result"
    IS_RUN: ClassVar[bool] = True

    memory_need_bytes: dict[str, int]
    """Estimate of the run's memory in bytes before it started: weights, kv_cache, workspace."""
    prompt: list[int] = field(default_factory=list)
    """Token ids of the prompt of each row, or, if they differ, of the first row."""
    prompts: list[list[int]] = field(default_factory=list)
    """Token ids of each row's prompt if they differ; empty if all rows got the same, as in all records of versions
    without this field."""
    prompt_text: str | None = None
    """`prompt` as text, without a begin-of-text token; None if the model has no tokenizer."""
    prompt_texts: list[str] = field(default_factory=list)
    """`prompts` as text."""
    engine_choice: list[str] | None = None
    """For `engine=auto`, the reason why each engine that is usually faster was not taken; None if an engine was
    named."""

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> None:
        own = []
        for entry in of_list(raw.get("compilations")):
            upgrade_compilation(entry)
            if (
                isinstance(entry, dict) and entry.pop("shared", False) is True
            ):  # an earlier job's: only its seconds are kept
                with contextlib.suppress(KeyError, TypeError):
                    raw["shared_compile_s"] = entry["prepare_s"] + entry.get("later_s", 0.0)
            else:
                own.append(entry)
        if isinstance(raw.get("compilations"), list):
            raw["compilations"] = own
        if "prompt" not in raw:
            with contextlib.suppress(KeyError, TypeError, AttributeError):
                raw["prompt"] = raw["config"]["workload"].get("prompt")

    def check(self) -> None:
        super().check()
        moved, steps = self.traffic, len(self.traffic.positions_read)
        require(steps > 0, "traffic.positions_read", "a number for each step")
        require(len(moved.kv_len) == steps, "traffic.kv_len", f"{steps} numbers, one for each step")
        for name in ("positions_attended", "positions_moved", "kv_needed", "kv_moved"):
            require(len(getattr(moved, name)) in (0, steps), f"traffic.{name}", f"{steps} numbers, or none")
        for index, sample in enumerate(self.samples):
            place = f"samples[{index}]"
            sample.check(place)
            expected = f"{steps} numbers, one for each step of traffic"
            require(bool(sample.step_tokens) or len(sample.step_s) == steps, f"{place}.step_s", expected)
            for name in ("prompts", "prompt_texts"):
                count = len(getattr(self, name))
                require(count in (0, len(sample.tokens)), name, "one for each row, or none")
            for name in ("experts_chosen", "experts_read"):
                experts, least = getattr(sample, name), moved.experts_least * len(sample.step_s)
                require(experts is None or experts >= least, f"{place}.{name}", f"at least {least}, or null")
        if (quality := self.quality) is not None:
            require(len(quality.context) == 2, "quality.context", "two numbers")
            for name in ("reference_nll", "kl", "same_top"):
                count = len(getattr(quality, name))
                require(count in (0, len(quality.nll)), f"quality.{name}", "as many as quality.nll, or none")
        require(self.breakdown is None or bool(self.breakdown.launches), "breakdown.launches", "at least one")

    def extra_traits(self) -> dict[str, str]:
        prompt = {"prompt_tokens": str(len(self.prompt)), "prompt": digest(self.prompts or self.prompt)[:PROMPT_DIGITS]}
        return prompt | super().extra_traits()

    @property
    def is_gpt_fast(self) -> bool:
        """Whether it has the workload or the engine of PyTorch's gpt_fast benchmark."""
        return GPT_FAST in (self.config["workload"]["name"], self.config["engine"]["name"])

    def problem(self) -> str | None:
        task = self.config.get("task", {})
        if not all(sample.finite for sample in self.samples):
            return "logits or cached values are not finite"
        has_quality = task.get("name") == "quality" or self.quality is not None
        if has_quality and not all(map(math.isfinite, part_metrics(self, "quality").values() or [math.nan])):
            return "quality was not measured, or is not finite"
        if task.get("breakdown") and self.breakdown is None:
            return "the breakdown of a step could not be measured"
        if not self.samples:
            return "it has no samples"
        return None if valid_samples(self) else "something was compiled during every sample"

    @functools.cached_property
    def summary(self) -> dict[str, float]:
        return summary(self)

    @functools.cached_property
    def sampled(self) -> list[dict[str, float]]:
        """Metrics of each valid sample, computed on first access."""
        return [sample_metrics(self, sample) for sample in valid_samples(self)]

    def busy_kinds(self) -> dict[str, list[str]]:
        compiled = [entry for entry in self.compilations if entry.cache != "none"]
        measuring = [] if self.energy is None or self.energy.load is None else [self.energy.load]
        # The counter of a CPU covers all its cores.
        spare = spare_cores(measuring, self.environment) if measuring and self.environment.on_gpu else 0
        return by_kind(
            speed=slow_probes(self.probes, self.roof) + busy_samples(valid_samples(self), self.environment),
            compile=shared([entry.load for entry in compiled if entry.load is not None], spare=0),
            energy=shared(measuring, spare),
        )

    @property
    def loads(self) -> list[Load]:
        return loads_of(self.samples)

    def publication(self) -> Publication:
        names = {group: self.config[group]["name"] for group in ("engine", "sampling")}
        # Without the time that an earlier job of the sweep spent.
        seconds = self.load_s if self.reused is None else 0.0
        seconds += sum(compilation.prepare_s for compilation in self.compilations)
        seconds += sum(warm_up.call_s for warm_up in self.warm_ups) + sum(sample.call_s for sample in self.samples)
        known = self.summary
        return replace(
            super().publication(),
            name=self.run_name,
            seconds=seconds,
            status=FINISHED if all(sample.finite for sample in self.samples) else FAILED,
            tags=self.tags(
                **names,
                weights="seeded random" if self.checkpoint is None else self.checkpoint.folder,
                compile_cache=self.compilations[0].cache if self.compilations else None,
            ),
            note=", ".join(
                f"{metric.label} {number(known[metric.name] * metric.factor)} {metric.unit}".strip()
                for metric in brief(known)
            ),
            params=self.config | {"prompt_tokens": len(self.prompt)},
            metrics=list(self.published_metrics(known)),
        )

    def published_metrics(self, known: dict[str, float]) -> Iterator[tuple[str, float, int]]:
        """Yield name, value and sample number of every metric. MLflow's pages keep the order, and the plot on its page
        that compares runs begins with the first."""
        for metric in brief(known):
            yield f"brief/{metric.brief}", known[metric.name] * metric.factor, 0
        for name, value in known.items():
            yield name, value, 0
        for step, sample in enumerate(self.samples):
            yield "sample/compiles", float(sample.compiles), step
            if sample.state is not None:
                yield "sample/throttled", float(sample.throttled), step
            if not sample.compiles:
                for name, value in sample_metrics(self, sample).items():
                    yield f"sample/{name}", value, step
        by_state = {entry.metric: entry for entry in reversed(self.compilations) if entry.metric is not None}
        for state, compilation in by_state.items():  # of two with the same state of the cache, the first
            for stage, seconds in compilation.stage_s.items():
                yield f"compile_stage/{state}/{stage}", seconds, 0

    def write_files(self, folder: Path) -> None:
        """Write the generated text, a table of all decode steps, and the profiled step."""
        super().write_files(folder)
        if any(sample.text for sample in self.samples):
            texts = [
                f"{self.prompt_texts[row] if self.prompt_texts else self.prompt_text}{text}"
                for sample in self.samples
                for row, text in enumerate(sample.text)
            ]
            (folder / "text.txt").write_text(SEPARATOR.join(texts) + "\n", encoding="utf-8")
        steps: list[list[Any]] = []
        for index, sample in enumerate(self.samples):
            decode, traffic = Steps(sample), self.traffic
            read, tokens = decode.of_rows(traffic.positions_read), decode.tokens.sum(axis=1)
            columns = zip(sample.step_s, decode.needed(traffic), decode.moved(traffic), read, tokens, strict=True)
            steps += ([index, step, *values] for step, values in enumerate(columns))
        head = ["sample", "step", "seconds", "bytes", "bytes_moved", "positions_read", "tokens"]
        write_table(folder / "steps.csv", head, steps)
        if self.breakdown is not None:
            write_trace(self.breakdown, self.roof.gb_per_s, folder / "trace.json")
            rows = [asdict(share) | {"gb_per_s": share.gb_per_s} for share in self.breakdown.by_kernel()]
            write_table(folder / "breakdown.csv", rows[0], [row.values() for row in rows])


def upgrade_compilation(entry: Any) -> None:
    """Add `stage_s`, in place, to a compilation of a version that did not record it."""
    if isinstance(entry, dict) and not {"stage_s", "costs_s"} & entry.keys():
        with contextlib.suppress(TypeError, AttributeError):  # malformed: reported when the entry is checked
            stages: Any = entry.get("torch_stage_s", entry.get("stages_s"))
            prepare_s: Any = entry.get("prepare_s")
            entry["stage_s"] = costs(prepare_s, stages, triton_s=0.0, capture_s=0.0) if stages else {}


def brief(known: dict[str, float]) -> list[Metric]:
    """Return the metrics of a summary that are published as ``brief/<key>`` in display units. MLflow's charts and
    comparisons show two or three decimals, too few for seconds, and group charts by what precedes the slash, in
    alphabetical order, with ungrouped ones last."""
    return [metric for metric in METRICS.values() if metric.brief is not None and metric.name in known]
