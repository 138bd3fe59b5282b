"""The record of a run, as `result.json` holds it: raw samples with units; statistics are computed when read."""

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
"""Name of the workload, and of the engine, of PyTorch's gpt_fast benchmark."""
SEPARATOR = "\n\n----\n\n"
"""Between the texts of two answers."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What was read, for the record."""

    folder: str
    files: list[str]
    bytes: int
    """Of all files together."""
    headers_sha256: str
    """Of every tensor's name, file, shape and type, and every file's size: tells checkpoints of one shape apart only
    where these differ."""


@dataclass(kw_only=True)
class Measurement:
    """What measuring an engine gives: the fields that its record has beyond those of every record."""

    load_s: float
    """Seconds to make and fill the weights."""
    prepare_peak_memory_bytes: int
    """Most memory in use while the weights were made, and the engine prepared and warmed up."""
    traffic: Traffic
    compilations: list[Compilation]
    """First the one before the samples, then, if measured, that of a second process."""
    warm_ups: list[WarmUp]
    samples: list[Sample]
    checkpoint: CheckpointInfo | None = None
    """What the weights were read from; None where they are seeded."""
    quality: Predictions | None = None
    """What came of predicting a text, if the task was to."""
    engine_details: dict[str, Any] = field(default_factory=dict)
    """What the engine says of itself beyond its configuration, such as the tiles that its kernels used."""
    tune_s: float | None = None
    """Seconds of the search for tiles, if one was asked for; no part of any compile time."""
    reused: str | None = None
    """When the earlier job of the sweep began that made the weights which this one took over: `load_s` is that job's.
    None where it made its own."""
    shared_compile_s: float | None = None
    """Seconds that earlier jobs of the sweep spent on compiling what this one took over; None as above."""
    breakdown: Breakdown | None = None
    """Where the time of one decode step goes, if the task was to tell."""
    energy: Energy | None = None
    """What prefill and decode use, if the task was to tell, and the device does."""


@dataclass(kw_only=True)
class Result(Measurement, Measured):
    """One run."""

    FILE: ClassVar[str] = "result"
    IS_RUN: ClassVar[bool] = True

    memory_need_bytes: dict[str, int]
    """What the run was expected to need before it was started: weights, kv_cache, workspace."""
    prompt: list[int] = field(default_factory=list)
    """Token ids of the prompt that each row got, or, where they differ, the first."""
    prompts: list[list[int]] = field(default_factory=list)
    """Those of each row where they differ; empty where all rows got the same, as in every record of a version that does
    not have this field."""
    prompt_text: str | None = None
    """`prompt` as text, without a begin-of-text token, if the model has a tokenizer."""
    prompt_texts: list[str] = field(default_factory=list)
    """`prompts` as text."""
    engine_choice: list[str] | None = None
    """Of `engine=auto`: what each engine that is faster as a rule lacked; None where an engine was asked for."""

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> None:
        own = []
        for entry in of_list(raw.get("compilations")):
            upgrade_compilation(entry)
            if isinstance(entry, dict) and entry.pop("shared", False) is True:  # of jobs before: no more is kept of it
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
            told = f"{steps} numbers, one for each step of traffic"
            require(bool(sample.step_tokens) or len(sample.step_s) == steps, f"{place}.step_s", told)
            for name in ("prompts", "prompt_texts"):
                count = len(getattr(self, name))
                require(count in (0, len(sample.tokens)), name, "one for each row, or none")
            for name in ("experts_chosen", "experts_read"):
                experts, least = getattr(sample, name), moved.experts_least * len(sample.step_s)
                require(experts is None or experts >= least, f"{place}.{name}", f"at least {least}, or null")
        if (found := self.quality) is not None:
            require(len(found.context) == 2, "quality.context", "two numbers")
            for name in ("reference_nll", "kl", "same_top"):
                count = len(getattr(found, name))
                require(count in (0, len(found.nll)), f"quality.{name}", "as many as quality.nll, or none")
        require(self.breakdown is None or bool(self.breakdown.launches), "breakdown.launches", "at least one")

    def own_traits(self) -> dict[str, str]:
        prompt = {"prompt_tokens": str(len(self.prompt)), "prompt": digest(self.prompts or self.prompt)[:PROMPT_DIGITS]}
        return prompt | super().own_traits()

    @property
    def is_gpt_fast(self) -> bool:
        """Whether it has the workload or the engine of PyTorch's gpt_fast benchmark."""
        return GPT_FAST in (self.config["workload"]["name"], self.config["engine"]["name"])

    def problem(self) -> str | None:
        task = self.config.get("task", {})
        if not all(sample.finite for sample in self.samples):
            return "logits or cached values are not finite"
        asked = task.get("name") == "quality" or self.quality is not None
        if asked and not all(map(math.isfinite, part_metrics(self, "quality").values() or [math.nan])):
            return "quality was not measured, or is not finite"
        if task.get("breakdown") and self.breakdown is None:
            return "no step was broken down"
        if not self.samples:
            return "it has no samples"
        return None if valid_samples(self) else "something was compiled during every sample"

    @functools.cached_property
    def summary(self) -> dict[str, float]:
        return summary(self)

    @functools.cached_property
    def sampled(self) -> list[dict[str, float]]:
        """Metrics of each valid sample, as they were when first asked for."""
        return [sample_metrics(self, sample) for sample in valid_samples(self)]

    def busy_kinds(self) -> dict[str, list[str]]:
        own = [one for one in self.compilations if one.cache != "none"]
        measuring = [] if self.energy is None or self.energy.load is None else [self.energy.load]
        # A CPU's energy is that of all its cores.
        spare = spare_cores(measuring, self.environment) if measuring and self.environment.on_gpu else 0
        return by_kind(
            speed=slow_probes(self.probes, self.roof) + busy_samples(valid_samples(self), self.environment),
            compile=shared([one.load for one in own if one.load is not None], spare=0),
            energy=shared(measuring, spare),
        )

    @property
    def loads(self) -> list[Load]:
        return loads_of(self.samples)

    def publication(self) -> Publication:
        names = {group: self.config[group]["name"] for group in ("engine", "sampling")}
        # Without what an earlier job of the sweep has paid.
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
                f"{one.label} {number(known[one.name] * one.factor)} {one.unit}".strip() for one in brief(known)
            ),
            params=self.config | {"prompt_tokens": len(self.prompt)},
            metrics=list(self.published_metrics(known)),
        )

    def published_metrics(self, known: dict[str, float]) -> Iterator[tuple[str, float, int]]:
        """Name, value and sample of every number. MLflow's pages keep the order, and the plot of its page that compares
        runs begins with the first."""
        for one in brief(known):
            yield f"brief/{one.brief}", known[one.name] * one.factor, 0
        for name, value in known.items():
            yield name, value, 0
        for step, sample in enumerate(self.samples):
            yield "sample/compiles", float(sample.compiles), step
            if sample.state is not None:
                yield "sample/throttled", float(sample.throttled), step
            if not sample.compiles:
                for name, value in sample_metrics(self, sample).items():
                    yield f"sample/{name}", value, step
        named = {each.metric: each for each in reversed(self.compilations) if each.metric is not None}
        for whose, compilation in named.items():  # of two that met the same, the first
            for stage, seconds in compilation.stage_s.items():
                yield f"compile_stage/{whose}/{stage}", seconds, 0

    def write_files(self, folder: Path) -> None:
        """What was generated, every decode step as a table, and a profiled step."""
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
            own, traffic = Steps(sample), self.traffic
            read, tokens = own.of_rows(traffic.positions_read), own.tokens.sum(axis=1)
            each = zip(sample.step_s, own.needed(traffic), own.moved(traffic), read, tokens, strict=True)
            steps += ([index, step, *values] for step, values in enumerate(each))
        columns = ["sample", "step", "seconds", "bytes", "bytes_moved", "positions_read", "tokens"]
        write_table(folder / "steps.csv", columns, steps)
        if self.breakdown is not None:
            write_trace(self.breakdown, self.roof.gb_per_s, folder / "trace.json")
            rows = [asdict(share) | {"gb_per_s": share.gb_per_s} for share in self.breakdown.by_kernel()]
            write_table(folder / "breakdown.csv", rows[0], [row.values() for row in rows])


def upgrade_compilation(entry: Any) -> None:
    """Sums up, in place, what a version recorded that did not."""
    if isinstance(entry, dict) and not {"stage_s", "costs_s"} & entry.keys():
        with contextlib.suppress(TypeError, AttributeError):  # they are not what they should be, which is told
            stages: Any = entry.get("torch_stage_s", entry.get("stages_s"))
            prepare_s: Any = entry.get("prepare_s")
            entry["stage_s"] = costs(prepare_s, stages, triton_s=0.0, capture_s=0.0) if stages else {}


def brief(known: dict[str, float]) -> list[Metric]:
    """Of a summary, what runs are compared by, as ``brief/<key>`` in the unit that people read: MLflow's charts and
    comparisons show two or three decimals, which leave nothing of seconds; and charts are grouped by what stands before
    the slash, in alphabetical order, those without one last."""
    return [each for each in METRICS.values() if each.brief is not None and each.name in known]
