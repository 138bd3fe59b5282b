"""The parsers of the commands' arguments. They import only the standard library, so that `--help` is fast."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from gptbench.base.address import unusable_address
from gptbench.base.hub import expanded
from gptbench.base.paths import SELECTOR_HELP
from gptbench.base.redaction import HIDDEN
from gptbench.base.streams import FORMATS

LISTS = (
    "models",
    "engines",
    "quants",
    "experiments",
    "metrics",
    "samplings",
    "workloads",
    "tasks",
    "devices",
    "baselines",
    "sweeps",
    "trackings",
)
"""Names of the lists of `gptbench list`."""
REPLACED = "an earlier table of the same kind is replaced, another file is not"
"""Help text on existing files."""


def add_places(parser: argparse.ArgumentParser) -> None:
    """Adds the options for where records are looked up."""
    parser.add_argument("--outputs", metavar="DIR", type=path, default=Path("outputs"), help="outputs folder")
    parser.add_argument("--uri", type=uri, help="MLflow store or server; by default the store in the outputs folder")


def add_format(parser: argparse.ArgumentParser, default: str = "text") -> None:
    """Adds the option for the format of the command's table."""
    described = f"format of the table: text goes to stderr; md, csv and json go to stdout; {default} by default"
    parser.add_argument("--format", metavar=",".join(FORMATS), type=table_format, default=default, help=described)


def table_format(text: str) -> str:
    """Return a format of tables; `table` is the former name of text."""
    if (chosen := "text" if text == "table" else text) not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: expected one of {', '.join(FORMATS)}")
    return chosen


def path(text: str) -> Path:
    """Return the path of a file or folder, with `~` replaced by the home folder."""
    return Path(expanded(text))


def uri(text: str) -> str:
    """Return the address of a store or server. The message on an invalid one hides it, as it may hold a password."""
    if (expected := unusable_address(text)) is not None:
        raise argparse.ArgumentTypeError(f"{HIDDEN}: expected {expected}")
    return text


def share(text: str) -> float:
    """Return the fraction that `0.5%` or `0.005` stands for."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a share such as 0.5% or 0.005")
    return value


def add_even_if_busy(parser: argparse.ArgumentParser) -> None:
    """Adds the option to give verdicts on runs from a busy machine, too."""
    described = "treat runs that were measured on a busy machine like any others"
    parser.add_argument("--even-if-busy", action="store_true", help=described)


def kind_and_share(text: str) -> tuple[str, float]:
    """Return kind and share of a margin such as `speed=3%`."""
    kind, _, value = text.partition("=")
    return kind, share(value)


def compare() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench compare",
        description="Compares recorded runs A and B: for each metric the ratio B / A with its 95% interval, and "
        "whether B is faster, slower, within noise or undecided, and then what is possible. In whole sweeps, each job "
        "is compared with the same job of the other side.",
        epilog=f"A and B are {SELECTOR_HELP}. If a side has several runs of one configuration, each run counts as one "
        "value; with single runs the samples count, and the interval is widened by the process-to-process variance of "
        "this device's recorded runs in the outputs folder, or a built-in estimate.",
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--margin", type=share, help="smallest change of speed that counts; 1%% by default")
    add_format(parser)
    add_even_if_busy(parser)
    add_places(parser)
    return parser


def gate() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench gate",
        description="Measures every row of a baseline, or takes recorded runs, and fails if speed, compile time, "
        "memory, quality or energy is worse beyond noise. A row that is worse is measured again, and then all its runs "
        "are compared with the baseline. Works only on the device of the baseline. Exit code 1 if anything is worse, 3 "
        "if there is no verdict because the machine was busy with other work.",
        epilog=f"RUN is {SELECTOR_HELP}. Example: gptbench gate --record h200.yaml --run 'experiment=llama2_7b_bf16' "
        "--repeats 3; later, after a change: gptbench gate --baseline h200.yaml --repeats 3",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--baseline", metavar="FILE", help="baseline with rows: a file, or the name of a shipped one")
    what.add_argument("--record", metavar="FILE", type=path, help="write a baseline instead")
    parser.add_argument("runs", metavar="RUN", nargs="*", help="recorded runs to use instead of measuring")
    parser.add_argument("--partial", action="store_true", help="rows without a run do not fail")
    parser.add_argument(
        "--run",
        metavar="OVERRIDES",
        action="append",
        default=[],
        help="with --record: overrides of a run to measure, in one argument",
    )
    parser.add_argument(
        "--repeats", type=int, default=1, help="number of runs of each configuration, interleaved; 1 by default"
    )
    parser.add_argument("--strict", action="store_true", help="undecided metrics fail, too")
    parser.add_argument("--force", action="store_true", help="with --record: replace an existing file")
    parser.add_argument(
        "--margin",
        metavar="KIND=SHARE",
        type=kind_and_share,
        action="append",
        default=[],
        help="with --record: largest change of a kind of metric that counts as noise, such as speed=3%%",
    )
    parser.add_argument(
        "--set", metavar="OVERRIDE", action="append", default=[], help="override for every run that is measured"
    )
    add_even_if_busy(parser)
    add_format(parser)
    add_places(parser)
    return parser


def ab() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench ab",
        description="Measures two configurations, interleaved, in one process: A B B A B A A B and so on. Each round "
        "builds both engines anew and gives one ratio; measuring ends when the 95% interval around their mean is "
        "narrow enough, or the time budget is used up.",
        epilog="Example: gptbench ab 'engine=fused' 'engine=inductor' model=llama3_2_1b workload=gpt_fast. Both "
        "engines are in memory at once. Compile times are not compared: torch's usual cache is used.",
    )
    parser.add_argument("a", metavar="A", help="overrides of A, in one argument: 'quant=none engine=fused'")
    parser.add_argument("b", metavar="B", help="overrides of B")
    parser.add_argument("shared", metavar="OVERRIDE", nargs="*", help="overrides of both sides, applied before A and B")
    parser.add_argument(
        "--half-width",
        type=share,
        default=0.005,
        help="half width at which to stop, of the interval of decode tokens/s; 0.5%% by default",
    )
    parser.add_argument(
        "--budget-s", type=float, default=300.0, help="time budget for all rounds, in seconds; 300 by default"
    )
    parser.add_argument(
        "--margin", type=share, default=0.005, help="smallest change that counts, however certain; 0.5%% by default"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="folder with configurations of your own")
    add_format(parser)
    return parser


def report() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench report",
        description="Writes one HTML file with tables and charts of recorded runs, without scripts or network access.",
        epilog=f"RUN is {SELECTOR_HELP}. An earlier report under the same name is replaced, another file is not.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=path, help="report.html in the outputs folder by default"
    )
    add_places(parser)
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        action="append",
        default=[],
        help="baseline whose targets are shown, too: a file or one of conf/baseline; can be repeated",
    )
    parser.add_argument("--title", default="gptbench", help="heading of the page")
    return parser


def explain() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench explain",
        description="Explains where the time of a run's decode step goes (bytes, kernel ramp-up/drain and launch gaps, "
        "attention, sampling, host), how far it is from the limit, and what would help. A run with task.breakdown=true "
        "gives the most detail.",
        epilog=f"RUN is {SELECTOR_HELP}; of several runs, the latest is explained.",
    )
    parser.add_argument("run", metavar="RUN")
    add_format(parser)
    add_places(parser)
    return parser


def rows() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench rows",
        description="Prints recorded runs in the format of PyTorch's gpt_fast benchmark: name, metric, target, actual, "
        "dtype, device, arch, is_model. Writes CSV to stdout unless a file is named.",
        epilog=f"RUN is {SELECTOR_HELP}. Tokens/s in this format include prefill.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument(
        "--baseline",
        default="a100_40gb",
        help="baseline with the targets: a file or a shipped one; a100_40gb by default",
    )
    parser.add_argument("--csv", metavar="FILE", type=path, help=f"write CSV; {REPLACED}")
    parser.add_argument("--json", metavar="FILE", type=path, help="write records of PyTorch's benchmark database (v3)")
    parser.add_argument(
        "--by",
        choices=("inductor", "kernel", "library"),
        default="inductor",
        help="micro-benchmarks to report: TorchInductor's (as in gpt_fast), gptbench's kernels', or the library's",
    )
    add_format(parser, "csv")
    add_places(parser)
    return parser


def export() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench export",
        description="Writes recorded runs as one table with a row per run: the overrides that its sweep varied, its "
        "metrics, identity, device and commit. csv and json have every metric in base units (seconds, bytes); md has "
        "the main ones, formatted for people.",
        epilog=f"RUN is {SELECTOR_HELP}. Each job of a sweep is a row, including failed ones.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+")
    add_format(parser, "csv")
    parser.add_argument(
        "--metrics", metavar="NAME,…", help="metrics to write, in this order, such as decode_tokens_per_s,mbu"
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=path, help=f"write to a file instead of stdout; {REPLACED}"
    )
    add_places(parser)
    return parser


def listing() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench list",
        description="Lists what can be chosen: models with their sizes, engines and whether they run here, quants with "
        "their bits per weight, experiments with the overrides that they stand for, metrics with their meanings, and "
        "the other groups of the configuration. Without a name, prints an overview.",
        epilog="--plugin FILE adds the options of a plugin. csv and json have sizes in bytes.",
    )
    parser.add_argument("what", metavar="NAME", nargs="?", choices=LISTS, help=", ".join(LISTS))
    add_format(parser)
    parser.add_argument("--config-dir", metavar="DIR", help="folder with configurations of your own")
    return parser


def log() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench log",
        description="Logs recorded results to MLflow; results that it already has are left unchanged.",
        epilog="Without options, a result is logged where its configuration says; one that was recorded with "
        "tracking=none is logged to the store in the outputs folder.",
    )
    parser.add_argument("results", metavar="RESULT", nargs="+", type=path, help="a result.json or kernels.json")
    parser.add_argument("--uri", type=uri, help="MLflow tracking server or store")
    parser.add_argument("--experiment", metavar="NAME", help="MLflow experiment")
    parser.add_argument("--outputs", metavar="DIR", type=path, help="outputs folder, with its local store")
    return parser


def sync() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench sync",
        description="Logs to MLflow all records in the outputs folder that are not logged yet, because the server was "
        "unreachable or the process was killed before it logged them. Sweeps whose process was killed are marked as "
        "ended.",
        epilog="Each record is logged where its configuration says; those recorded with tracking=none are not logged.",
    )
    parser.add_argument("--outputs", metavar="DIR", type=path, default=Path("outputs"), help="outputs folder")
    parser.add_argument(
        "--uri",
        type=uri,
        help="address with user and password (which records omit), for records that are logged to this address",
    )
    parser.add_argument("--all", action="store_true", help="check logged records, too, in case the store was lost")
    return parser


def cache() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench cache",
        description="Saves what was compiled and autotuned on this machine, so that a later start, or another machine "
        "of the same kind, need not do it again.",
        epilog="The whole cache folders of TorchInductor and Triton are saved; runs with engine.fresh_cache=true leave "
        "nothing in them. A cache file contains code that the next run executes: load only files that you trust.",
    )
    parser.add_argument("action", choices=("save", "load"), help="write FILE, or add its content to the caches")
    parser.add_argument("file", metavar="FILE", type=path, help="cache file, a zip")
    parser.add_argument(
        "--outputs", metavar="DIR", type=path, default=Path("outputs"), help="folder with the tile cache"
    )
    return parser


PARSERS: dict[str, Callable[[], argparse.ArgumentParser]] = {
    "compare": compare,
    "ab": ab,
    "gate": gate,
    "report": report,
    "explain": explain,
    "rows": rows,
    "export": export,
    "list": listing,
    "log": log,
    "sync": sync,
    "cache": cache,
}
"""Names of commands, mapped to the function that returns the parser."""
INTERMIXED = ("ab", "gate")
"""Commands whose options may stand between their arguments."""


def parsed(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments of a command. Ends the process with exit code 2 if they are wrong."""
    parser = PARSERS[command]()
    return (parser.parse_intermixed_args if command in INTERMIXED else parser.parse_args)(list(arguments))
