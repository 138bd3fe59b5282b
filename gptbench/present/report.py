"""The report: any set of records as one HTML page that needs no network, no script and no other file."""

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
OWN = {LIMIT: "Decode tokens/s if each step moved the bytes that it needs at the read roof."}
"""Meanings of headings that are no metrics'."""
GENERATOR = '<meta name="generator" content="gptbench report">'
"""By it a file is known as one of ours."""


@dataclass(frozen=True)
class Picture:
    """A chart on the page."""

    name: str
    title: str
    explanation: str
    svg: Markup


@dataclass(frozen=True)
class Origin:
    """Where a record comes from."""

    label: str
    started: str
    path: str
    identity: str
    command: str


def html(
    found: Sequence[SelectedRecord],
    baselines: Sequence[Baseline],
    title: str,
    selectors: Sequence[str],
    made: str,
    history: History = NO_HISTORY,
) -> str:
    """The page.

    Args:
        found: records, of sweeps those of their jobs.
        baselines: whose targets are shown beside those that a run was configured with.
        title: heading of the page.
        selectors: as the records were asked for.
        made: when, as it is to be read.
        history: recorded runs that say what single starts differ by.
    """
    records = {str(each.path): each.record for each in found}  # whoever selects a record twice means it once
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
        counted=f"{len(runs)} of {len(known)} runs count" if known else "",
        best=best(runs),
        **tables,
        meanings=meanings_in(tables.values()),
        verdicts=verdict_table(runs, history),
        shared=", ".join(f"{key} {value}" for key, value in shared_names(runs).items()),
        left_out=left_out(named),
        pictures=pictures(runs, kernels),
        remarks=[f"{name}: {remark}" for name, record in pairs for remark in remarks(record)],
        busy=[f"{name}: {told}" for name, record in named if record.IS_RUN and (told := why_busy(record))],
        same=same,
        differing=differing,
        origins=[origin(name, record, path) for path, (name, record) in zip(records, named, strict=True)],
    )
    return visible(made_page)


def meanings_in(tables: Iterable[Table]) -> dict[str, str]:
    """What the metrics of some tables mean, by the headings under which these show them."""
    shown = {text for table in tables for text in (*table.head, *(cell for row in table.lines for cell in row))}
    known = OWN | {one.heading: one.meaning for one in METRICS.values()}
    return {heading: meaning for heading, meaning in known.items() if heading in shown}


def of_text(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Collection[int] = ()) -> Table:
    """A table of text; columns in `numbers` are aligned at the right."""
    return Table("", [Column(head=name, right=place in numbers) for place, name in enumerate(head)], rows)


def only(kind: type[R], named: list[tuple[str, Recorded]]) -> list[tuple[str, R]]:
    """Those of one kind."""
    return [(name, record) for name, record in named if isinstance(record, kind)]


def is_report(head: str) -> bool:
    """Whether a file that begins so is one of ours."""
    return GENERATOR in head


def best(runs: list[Run]) -> list[str]:
    """A sentence for the fastest run of each model."""
    fastest: dict[str, Run] = {}
    for run in runs:
        fastest.setdefault(run.result.config["model"]["name"], run)
    return [sentence(model, run, alone=len(runs) == 1) for model, run in fastest.items()]


def sentence(model: str, run: Run, alone: bool) -> str:
    result, numbers = run.result, run.summary
    share = run.tokens_per_s / run.limit_tokens_per_s * 100
    which = "" if alone else f" ({run.label})"
    batch = result.config["workload"]["batch_size"]
    text = (
        f"{model}, {result.weights}, engine {result.config['engine']['name']}, batch {batch}, "
        f"{len(result.prompt)} prompt + {result.config['workload']['new_tokens']} new tokens{which} decodes "
        f"{number(run.tokens_per_s)} tokens/s on {result.environment.device}. That is {number(share)} % of the "
        f"{number(run.limit_tokens_per_s)} tokens/s at which the {number(numbers['gb_per_step'])} GB that a step needs "
        f"would pass at the read roof of {number(result.roof.gb_per_s)} GB/s."
    )
    return f"{text} What binds it: {'; '.join(binds(Step(result)))}." if alone else f"Fastest: {text}"


def names_of(run: Run) -> dict[str, str]:
    """What was run, in the summary's first columns."""
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
    """Those that several runs all have in common: they are told once, and have no column."""
    told = [names_of(run) for run in runs]
    return (
        {key: value for key, value in told[0].items() if all(each[key] == value for each in told)} if told[1:] else {}
    )


def summary_table(runs: list[Run]) -> Table:
    columns = [one for one in shown_in(View.report) if any(one.name in run.summary for run in runs)]
    if not runs:
        return of_text([], [])
    shared = shared_names(runs)
    names = [name for name in names_of(runs[0]) if name not in shared]
    others = [one for one in columns if one.name != HEADLINE]
    # What most readers look for comes first: a phone shows two or three columns.
    head = ["run", METRICS[HEADLINE].heading, *names, "min … max", LIMIT]
    head += [*(one.heading for one in others), "valid samples"]
    rows = []
    for run in runs:
        spread = " … ".join(map(number, run.spread(HEADLINE)))
        row = [run.label, number(run.tokens_per_s), *(names_of(run)[name] for name in names)]
        row += [spread, number(run.limit_tokens_per_s)]
        row += [one.text(run.summary.get(one.name)) for one in others]
        rows.append([*row, samples_of(run)])
    return of_text(head, rows, {1, *range(2 + len(names), len(head) - 1)})


def verdict_table(runs: list[Run], history: History = NO_HISTORY) -> Table:
    """Each run beside the fastest that did the same work on the same device: decode tokens/s, and what its interval
    allows to be said."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:  # the fastest of a model comes first
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
            told = "no verdict: busy machine" if is_busy(fastest) or is_busy(other) else row.verdict_text
            of = row.basis if row.process_spread is None else f"{row.basis}, which differ by {row.process_spread}"
            rows.append([other.label, told, f"{row.ratio.value:.4f}", ends, fastest.label, of])
    return of_text(["run", "verdict", "ratio", "95% interval", "beside the fastest", "of"], rows, {2, 3})


def is_busy(run: Run) -> bool:
    """Whether the machine was, during its samples."""
    return "speed" in run.result.busy_kinds()


def samples_of(run: Run) -> str:
    """How many count, and how many of these were held back by power or heat."""
    valid, of, throttled = (int(run.summary[f"samples_{name}"]) for name in ("valid", "all", "throttled"))
    marks = ([f"{throttled} throttled"] if throttled else []) + (["busy machine"] if is_busy(run) else [])
    return ", ".join([f"{valid} of {of}", *marks])


def left_out(named: list[tuple[str, Recorded]]) -> Table:
    """What counts for nothing, or is not shown, and why."""
    rows = []
    for name, record in named:
        if (told := record.not_shown()) is not None:
            rows.append([name, *told, " ".join(record.swept)])
    return of_text(["run", "what", "why", "overrides"], rows)


def pictures(runs: list[Run], kernels: list[KernelResult]) -> list[Picture]:
    """Every chart for which there is something."""
    made = []
    for chart in CHARTS:
        figure = chart.draw(runs) if runs else None
        if figure is not None:
            svg = inline(figure, chart.name, chart.title)
            made.append(Picture(chart.name, chart.title, chart.explanation, svg))
    figure = kernels_figure(kernels)
    if figure is not None:
        told = "The rate at which each implementation moves the bytes of a call, of the read roof."
        made.append(Picture("kernels", KERNELS, told, inline(figure, "kernels", KERNELS)))
    return made


def kernel_table(results: list[KernelResult]) -> Table:
    """Every implementation that was timed."""
    shown = shown_in(View.kernels)
    head = ["kernel", "by", *(one.heading for one in shown), "device"]
    rows = []
    for result in results:
        for kernel in result.kernels:
            for name, row in kernel_metrics(result, kernel).items():
                numbers = [one.text(getattr(row, one.name)) for one in shown]
                rows.append([kernel.label, name, *numbers, result.environment.device])
    return of_text(head, rows, set(range(2, 2 + len(shown))))


def pair_table(pairs: list[tuple[str, AbResult]]) -> Table:
    """Every metric of what was measured in turns."""
    head = ["measured in turns", "A", "B", "metric", "A's", "B's", "B / A", "95% interval", "verdict", "of"]
    rows = []
    for name, record in pairs:
        shared = [one for one in record.sides["A"].overrides if one in record.sides["B"].overrides]
        sides = [" ".join(one for one in record.sides[side].overrides if one not in shared) for side in "AB"]
        for row in interleaved(record):
            metric = row.metric
            ends = "" if row.ratio.low is None else f"{row.ratio.low:.4f} … {row.ratio.high:.4f}"
            numbers = [metric.text(row.a), metric.text(row.b), f"{row.ratio.value:.4f}", ends]
            rows.append([f"{name} {' '.join(shared)}", *sides, metric.heading, *numbers, row.verdict_text, row.basis])
    return of_text(head, rows, {4, 5, 6, 7})


def environments(named: list[tuple[str, Measured]]) -> tuple[Table, Table]:
    """What was the same for all, and what was not: a row for each run."""
    places = [place(record) for _, record in named]
    keys = dict.fromkeys(key for each in places for key in each)
    values = {key: [each.get(key, "") for each in places] for key in keys}
    same = [[key, each[0]] for key, each in values.items() if len(set(each)) == 1]
    differing = {key: each for key, each in values.items() if len(set(each)) > 1}
    rows = [[name, *cells] for (name, _), *cells in zip(named, *differing.values(), strict=True)]
    return of_text(["what", "value"], same), of_text(["run", *differing], rows if differing else [])


def place(record: Measured) -> dict[str, str]:
    """Where a number comes from, as text."""
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
    return Origin(label, record.started, path, record.identity or "", shlex.join(record.command))
