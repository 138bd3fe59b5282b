"""Report: any set of records as one HTML page that needs no network, no script and no other file."""

import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from gptbench.base.numbers import number
from gptbench.base.streams import visible
from gptbench.charts import CHARTS, KERNELS, Run, in_order, kernels_figure, targets_of
from gptbench.compare.baseline import Baseline
from gptbench.compare.explain import binds
from gptbench.compare.interleaved import remarks
from gptbench.compare.interleaved import rows as interleaved
from gptbench.compare.row import run_row
from gptbench.compare.select import SelectedRecord
from gptbench.compare.starts import NO_HISTORY, History
from gptbench.compare.step import Step
from gptbench.present.formats import Column, Table
from gptbench.present.svg import inline
from gptbench.schema import Failure, KernelResult, Measured, Recorded, Result
from gptbench.schema.ab import AbResult
from gptbench.schema.busy import why_busy
from gptbench.schema.kernels import kernel_metrics
from gptbench.schema.labels import labels
from gptbench.schema.metrics import HEADLINE, METRICS, View, shown_in
from gptbench.schema.place import Place
from gptbench.schema.record import of_kind

R = TypeVar("R", bound=Recorded)

TEMPLATE = "report.html.j2"
LIMIT = "limit (tokens/s)"
OTHER_MEANINGS = {LIMIT: "Decode tokens/s if each step moved the bytes that it needs at the read roof."}
"""Meanings of headings that are not those of metrics."""
GENERATOR = '<meta name="generator" content="gptbench report">'
"""Element by which a file is recognised as a report."""


@dataclass(frozen=True)
class Picture:
    """Chart on the page."""

    name: str
    """Name of the chart, which is the id of its section."""
    title: str
    """Heading of the section."""
    explanation: str
    """How to read the chart."""
    svg: Markup
    """The chart as an `<svg>` element."""


@dataclass(frozen=True)
class Origin:
    """Origin of a record."""

    label: str
    """Label of the record on the page."""
    started: str
    """Time at which the run started."""
    path: str
    """Path of the record."""
    identity: str
    """Identity of the run; empty if it has none."""
    command: str
    """Command line that repeats it."""


def html(
    selected: Sequence[SelectedRecord],
    baselines: Sequence[Baseline],
    title: str,
    selectors: Sequence[str],
    made: str,
    history: History = NO_HISTORY,
) -> str:
    """Return the page.

    Args:
        selected: records; for sweeps, those of their jobs.
        baselines: baselines whose targets are shown in addition to those that a run was configured with.
        title: heading of the page.
        selectors: selectors by which the records were requested.
        made: time at which the page is made, as text.
        history: recorded runs from which process-to-process variance is estimated.
    """
    records = {str(entry.path): entry.record for entry in selected}  # a record that is selected twice is shown once
    known = {path: record for path, record in records.items() if isinstance(record, (Result, Failure))}
    names = dict(zip(known, labels(known.values()), strict=True))
    others = {path: f"{record.FILE} {record.started}" for path, record in records.items() if path not in known}
    named = [((names | others)[path], record) for path, record in records.items()]
    runs = in_order(
        Run(name, record, targets_of(record, baselines))
        for name, record in only(Result, named)
        if record.problem() is None
    )
    kernels = of_kind(KernelResult, records.values())
    pairs = [(name, record) for name, record in only(AbResult, named) if record.problem() is None]
    same, differing = environments(only(Measured, named))
    loader = FileSystemLoader(Path(__file__).parent)
    tables = {"summary": summary_table(runs), "kernels": kernel_table(kernels), "pairs": pair_table(pairs)}
    page = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made_page = page.get_template(TEMPLATE).render(
        generator=Markup(GENERATOR),
        title=title,
        made=made,
        selectors=selectors,
        counted=f"{len(runs)} of {len(known)} runs are valid" if known else "",
        best=best(runs),
        **tables,
        meanings=meanings_in(tables.values()),
        verdicts=verdict_table(runs, history),
        shared=", ".join(f"{key} {value}" for key, value in shared_names(runs).items()),
        left_out=left_out(named),
        pictures=pictures(runs, kernels),
        remarks=[f"{name}: {remark}" for name, record in pairs for remark in remarks(record)],
        busy=[f"{name}: {why}" for name, record in named if record.IS_RUN and (why := why_busy(record))],
        same=same,
        differing=differing,
        origins=[origin(name, record, path) for path, (name, record) in zip(records, named, strict=True)],
    )
    return visible(made_page)


def meanings_in(tables: Iterable[Table]) -> dict[str, str]:
    """Return the meanings of the metrics in some tables, by the headings under which these show them."""
    shown = {text for table in tables for text in (*table.head, *(cell for row in table.lines for cell in row))}
    known = OTHER_MEANINGS | {metric.heading: metric.meaning for metric in METRICS.values()}
    return {heading: meaning for heading, meaning in known.items() if heading in shown}


def of_text(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> Table:
    """Return a table of text; columns with an index in `numbers` are aligned to the right."""
    return Table("", [Column(head=name, right=place in numbers) for place, name in enumerate(head)], rows)


def only(kind: type[R], named: list[tuple[str, Recorded]]) -> list[tuple[str, R]]:
    """Return the records of one kind."""
    return [(name, record) for name, record in named if isinstance(record, kind)]


def is_report(head: str) -> bool:
    """Return whether a file that begins so is a report."""
    return GENERATOR in head


def best(runs: list[Run]) -> list[str]:
    """Return a sentence about the fastest run of each model."""
    fastest: dict[str, Run] = {}
    for run in runs:
        fastest.setdefault(run.result.config["model"]["name"], run)
    return [sentence(model, run, alone=len(runs) == 1) for model, run in fastest.items()]


def sentence(model: str, run: Run, alone: bool) -> str:
    """Return a sentence about a model's fastest run.

    Args:
        alone: whether it is the only run on the page, of which it is then said what binds it.
    """
    result, numbers = run.result, run.summary
    share = run.tokens_per_s / run.limit_tokens_per_s * 100
    which = "" if alone else f" ({run.label})"
    batch = result.config["workload"]["batch_size"]
    text = (
        f"{model}, {result.weights}, engine {result.config['engine']['name']}, batch {batch}, "
        f"{len(result.prompt)} prompt + {result.config['workload']['new_tokens']} new tokens{which} decodes "
        f"{number(run.tokens_per_s)} tokens/s on {result.environment.device}. That is {number(share)} % of the "
        f"{number(run.limit_tokens_per_s)} tokens/s at which the {number(numbers['gb_per_step'])} GB that a step needs "
        f"would be moved at the read roof of {number(result.roof.gb_per_s)} GB/s."
    )
    return f"{text} What limits it: {'; '.join(binds(Step(result)))}." if alone else f"Fastest: {text}"


def names_of(run: Run) -> dict[str, str]:
    """Return what was run, by the headings of the summary's first columns."""
    config = run.result.config
    return {
        "model": config["model"]["name"],
        "weights": run.result.weights,
        "engine": config["engine"]["name"],
        "batch": str(config["workload"]["batch_size"]),
        "prompt": f"{len(run.result.prompt)} tokens",
        "new tokens": str(config["workload"]["new_tokens"]),
    }


def shared_names(runs: list[Run]) -> dict[str, str]:
    """Return those names that several runs all share, which are shown once instead of in a column; empty for one
    run."""
    names = [names_of(run) for run in runs]
    if len(names) < 2:
        return {}
    return {key: value for key, value in names[0].items() if all(other[key] == value for other in names)}


def summary_table(runs: list[Run]) -> Table:
    """Return the table of all runs with their metrics; empty without runs."""
    columns = [metric for metric in shown_in(View.report) if any(metric.name in run.summary for run in runs)]
    if not runs:
        return of_text([], [])
    shared = shared_names(runs)
    names = [name for name in names_of(runs[0]) if name not in shared]
    others = [metric for metric in columns if metric.name != HEADLINE]
    # What most readers look for comes first, because a phone shows only two or three columns.
    head = ["run", METRICS[HEADLINE].heading, *names, "min … max", LIMIT]
    head += [*(metric.heading for metric in others), "valid samples"]
    rows = []
    for run in runs:
        spread = " … ".join(map(number, run.spread(HEADLINE)))
        row = [run.label, number(run.tokens_per_s), *(names_of(run)[name] for name in names)]
        row += [spread, number(run.limit_tokens_per_s)]
        row += [metric.text(run.summary.get(metric.name)) for metric in others]
        rows.append([*row, samples_of(run)])
    return of_text(head, rows, {1, *range(2 + len(names), len(head) - 1)})


def verdict_table(runs: list[Run], history: History = NO_HISTORY) -> Table:
    """Return the table that compares decode tokens/s of each run with those of the fastest run that did the same work
    on the same device."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:  # the fastest run of each model comes first
        names = names_of(run)
        work = (names["model"], names["batch"], names["prompt"], names["new tokens"])
        groups.setdefault((*work, str(Place.of(run.result.environment).kind)), []).append(run)
    rows = []
    for fastest, *others in groups.values():
        for other in others:
            row = run_row(METRICS[HEADLINE], [fastest.result], [other.result], None, history)
            if row is None:
                continue
            ends = "" if row.ratio.low is None else f"{row.ratio.low:.4f} … {row.ratio.high:.4f}"
            verdict = "no verdict: busy machine" if is_busy(fastest) or is_busy(other) else row.verdict_text
            spread = row.process_spread
            basis = row.basis if spread is None else f"{row.basis}; process-to-process spread {spread}"
            rows.append([other.label, verdict, f"{row.ratio.value:.4f}", ends, fastest.label, basis])
    return of_text(["run", "verdict", "ratio", "95% interval", "beside the fastest", "of"], rows, {2, 3})


def is_busy(run: Run) -> bool:
    """Return whether the machine was busy during a run's samples."""
    return "speed" in run.result.busy_kinds()


def samples_of(run: Run) -> str:
    """Return in words how many samples are valid, how many of these were throttled, and whether the machine was
    busy."""
    valid, total, throttled = (int(run.summary[f"samples_{name}"]) for name in ("valid", "all", "throttled"))
    marks = ([f"{throttled} throttled"] if throttled else []) + (["busy machine"] if is_busy(run) else [])
    return ", ".join([f"{valid} of {total}", *marks])


def left_out(named: list[tuple[str, Recorded]]) -> Table:
    """Return the table of records that are not valid or not shown, with the reasons."""
    rows = []
    for name, record in named:
        if (what_and_why := record.not_shown()) is not None:
            rows.append([name, *what_and_why, " ".join(record.swept)])
    return of_text(["run", "what", "why", "overrides"], rows)


def pictures(runs: list[Run], kernels: list[KernelResult]) -> list[Picture]:
    """Return every chart that has something to show."""
    charts = []
    for chart in CHARTS:
        figure = chart.draw(runs) if runs else None
        if figure is not None:
            svg = inline(figure, chart.name, chart.title)
            charts.append(Picture(chart.name, chart.title, chart.explanation, svg))
    figure = kernels_figure(kernels)
    if figure is not None:
        explanation = "Rate at which each implementation moves the bytes of a call, relative to the read roof."
        charts.append(Picture("kernels", KERNELS, explanation, inline(figure, "kernels", KERNELS)))
    return charts


def kernel_table(results: list[KernelResult]) -> Table:
    """Return the table of every implementation of a kernel that was timed."""
    shown = shown_in(View.kernels)
    head = ["kernel", "by", *(metric.heading for metric in shown), "device"]
    rows = []
    for result in results:
        for kernel in result.kernels:
            for name, row in kernel_metrics(result, kernel).items():
                numbers = [metric.text(getattr(row, metric.name)) for metric in shown]
                rows.append([kernel.label, name, *numbers, result.environment.device])
    return of_text(head, rows, set(range(2, 2 + len(shown))))


def pair_table(pairs: list[tuple[str, AbResult]]) -> Table:
    """Return the table of every metric of interleaved measurements."""
    head = ["interleaved", "A", "B", "metric", "A's", "B's", "B / A", "95% interval", "verdict", "of"]
    rows = []
    for name, record in pairs:
        shared = [override for override in record.sides["A"].overrides if override in record.sides["B"].overrides]
        sides = [
            " ".join(override for override in record.sides[side].overrides if override not in shared) for side in "AB"
        ]
        for row in interleaved(record):
            metric = row.metric
            ends = "" if row.ratio.low is None else f"{row.ratio.low:.4f} … {row.ratio.high:.4f}"
            numbers = [metric.text(row.a), metric.text(row.b), f"{row.ratio.value:.4f}", ends]
            rows.append([f"{name} {' '.join(shared)}", *sides, metric.heading, *numbers, row.verdict_text, row.basis])
    return of_text(head, rows, {4, 5, 6, 7})


def environments(named: list[tuple[str, Measured]]) -> tuple[Table, Table]:
    """Return the table of what the environments of all runs share, and that of what differs, with a row for each
    run."""
    places = [place(record) for _, record in named]
    keys = dict.fromkeys(key for environment in places for key in environment)
    values = {key: [environment.get(key, "") for environment in places] for key in keys}
    same = [[key, column[0]] for key, column in values.items() if len(set(column)) == 1]
    differing = {key: column for key, column in values.items() if len(set(column)) > 1}
    rows = [[name, *cells] for (name, _), *cells in zip(named, *differing.values(), strict=True)]
    return of_text(["what", "value"], same), of_text(["run", *differing], rows if differing else [])


def place(record: Measured) -> dict[str, str]:
    """Return the environment that a record was measured in, as text."""
    values: dict[str, Any] = asdict(record.environment)
    libraries = values.pop("libraries")
    values |= {
        "dtype": record.dtype,
        "read roof GB/s": record.roof.gb_per_s,
        "read roof measured": record.roof.measured,
    }
    values |= libraries
    return {
        key.replace("_w", " W").replace("_", " "): number(value) if isinstance(value, float) else str(value)
        for key, value in values.items()
        if value is not None
    }


def origin(label: str, record: Recorded, path: str) -> Origin:
    """Return the origin of a record."""
    return Origin(label, record.started, path, record.identity or "", shlex.join(record.command))
