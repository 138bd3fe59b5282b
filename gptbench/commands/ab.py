"""`gptbench ab`: measures two configurations, interleaved."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from gptbench.base.errors import BadResultError, UserError
from gptbench.base.paths import conf_folder
from gptbench.base.redaction import redacted
from gptbench.commands import parsers
from gptbench.commands.compare import row_line, sentence, shortened, table_of, words
from gptbench.compare.interleaved import headline, remarks, rows
from gptbench.compare.row import Row
from gptbench.config import guard, plugins, register
from gptbench.config.commandline import prepared
from gptbench.config.mistakes import message_for
from gptbench.execute import ab
from gptbench.present.console import console, write_line
from gptbench.present.formats import TEXT, show, write
from gptbench.present.terminal import Terminal
from gptbench.private.hydra import main_hydra, search_path
from gptbench.record.sync import log_recorded
from gptbench.schema.ab import AbResult
from gptbench.schema.identity import IDENTITY_SECTIONS
from gptbench.schema.labels import flat


def ab_command(arguments: list[str]) -> int:
    """`gptbench ab`: measures two configurations, interleaved. Returns the exit code: 130 after Ctrl-C.

    Raises:
        UserError: one of the sides cannot run here, or the two cannot run together.
        BadResultError: the results were recorded but are invalid.
    """
    options = parsers.ab().parse_intermixed_args(arguments)
    console.format = options.format
    stopping_rule = ab.StoppingRule(options.half_width, options.budget_s, options.margin)
    sides = []
    for side_overrides in (options.a, options.b):
        overrides = prepared([*options.shared, *words(side_overrides)], config_dir=options.config_dir)
        sides.append(ab.read(overrides, composed(overrides, options.config_dir)))
    return measure_and_show(
        (sides[0], sides[1]), stopping_rule, ["python", "-m", "gptbench", "ab", *plugins.options(), *arguments]
    )


def composed(overrides: list[str], config_dir: str | None) -> DictConfig:
    """Return the configuration that Hydra composes from overrides, checked as for a run.

    Raises:
        UserError: an override is invalid, or sets one of Hydra's settings.
    """
    for override in overrides:
        if not re.match(r"[\w+~]", override) or "=" not in override or override.lstrip("+~").startswith("hydra"):
            raise UserError(f"{override}: expected an override such as engine=fused, none of Hydra's own settings")
    guard.check_arguments(overrides)
    register()
    guard.install()
    path = search_path(str(conf_folder()))
    if config_dir is not None:
        guard.require_folder(config_dir)
        # The order in which Hydra itself has it: its schemas stay last.
        folder = f"file://{Path(config_dir).absolute()}"
        path.prepend("command-line", folder, SearchPathQuery(provider="schema"))
    GlobalHydra.instance().clear()
    try:
        hydra = main_hydra("gptbench", path)
        left_out = [f"{key}={value}" for key, value in ab.LEFT_OUT.items()]
        config = hydra.compose_config(
            "config", [*overrides, *left_out], run_mode=RunMode.RUN, with_log_configuration=False
        )
        with open_dict(config):
            del config["hydra"]
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(message_for(error, overrides)) from error
    finally:
        GlobalHydra.instance().clear()


def measure_and_show(
    sides: tuple[ab.RequestedSide, ab.RequestedSide], stopping_rule: ab.StoppingRule, command: list[str]
) -> int:
    """Measures two sides, records the result, shows and logs it. Returns the exit code.

    Args:
        command: the command line, for the record.
    """
    for name, side in zip("AB", sides, strict=True):
        console.print(f"{name}: {' '.join(redacted(side.overrides))}", markup=False)
    plain = [side.asked.as_dict() for side in sides]
    resolved = [dict(flat({group: values[group] for group in (*IDENTITY_SECTIONS, "device")})) for values in plain]
    for key in dict.fromkeys(key for values in resolved for key in values):
        a, b = (values.get(key, "") for values in resolved)
        if a != b:
            console.print(f"{key}: A {shortened(a)}, B {shortened(b)}", markup=False, style="dim")
    outputs = Path(sides[0].config.outputs)
    path: Path | None = None
    shown = 0
    observer = Terminal(console.quiet)

    def save_progress(result: AbResult) -> None:
        nonlocal path, shown
        if path is None:
            path = result.save(ab.folder_for(outputs, result.started))
        else:
            result.update(path)
        if len(result.rounds) == shown:
            return
        shown = len(result.rounds)
        row = headline(result)
        ratio = "" if row is None else f": B / A = {row.ratio.value:.4f}"
        ratio += "" if row is None or row.ratio.low is None else f" ±{row.ratio.half_width:.2%}"
        progress = f"{row.basis if row is not None else 'no complete round'}, {result.seconds:.0f} s{ratio}"
        console.print(progress, markup=False, style="dim")

    try:
        result = ab.measure(sides, stopping_rule, command, observer, save_progress)
    except Exception:
        if path is not None:
            console.print(f"measured so far: {path}", markup=False)
        raise
    assert path is not None
    result_rows = rows(result)
    table = table_of(f"B beside A on {result.environment.device}", [(row.heading, row) for row in result_rows])
    show(table)
    for remark in remarks(result):
        console.warn(remark)
    if (row := headline(result)) is not None:
        ended = {"narrow": "interval narrow enough", "budget": "time budget used up", "interrupted": "interrupted"}
        summary = f"{sentence(row)}; {row.basis}, {result.seconds:.0f} s, {ended[result.ended]}"
        console.print(summary, markup=False, style="bold")
    if few := too_few(result):
        console.warn(few)
    logged = log_recorded(result, path, sides[0].config.tracking, outputs, observer.warn)
    observer.recorded(result, path, logged)
    if console.format == TEXT:
        write_line(line_of(result, result_rows, path, logged))
    else:
        write([replace(table, notes=remarks(result))], console.format)
    if result.ended == "interrupted":
        return 130
    if (wrong := result.problem()) is not None:
        raise BadResultError(f"{path}: {wrong}")
    return 0


def line_of(result: AbResult, result_rows: list[Row], path: Path, logged: str | None) -> dict[str, Any]:
    """Return the line of JSON for programs."""
    return {
        "a": result.sides["A"].overrides,
        "b": result.sides["B"].overrides,
        "metrics": {row.name: row_line(row) for row in result_rows},
        "rounds": len(result.rounds),
        "seconds": result.seconds,
        "ended": result.ended,
        "remarks": remarks(result),
        "busy": {str(number): reasons for number, reasons in result.busy_rounds().items()},
        "device": result.environment.device,
        "commit": result.environment.commit,
        "result": str(path),
        "tracking": logged,
    }


def too_few(result: AbResult) -> str:
    """Return a note with the time budget that would suffice if this one was too short; otherwise an empty text."""
    rounds = len(result.rounds)
    if result.ended != "budget" or rounds >= ab.ENDING_ROUNDS:
        return ""
    counted = f"{rounds} rounds are" if rounds > 1 else "1 round is"
    needed = math.ceil(ab.budget_that_can_suffice(result))
    return f"{counted} too few: {ab.ENDING_ROUNDS}, which can be enough, need about --budget-s {needed}"
