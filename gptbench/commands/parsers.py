"""What each command takes, by name. Nothing here needs more than Python: `--help` answers at once."""

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
"""What `gptbench list` has a table of."""
REPLACED = "an earlier table of the same kind is replaced, another file is not"
"""What becomes of a file that is there."""


def add_places(parser: argparse.ArgumentParser) -> None:
    """Where records are looked up."""
    parser.add_argument("--outputs", metavar="DIR", type=path, default=Path("outputs"), help="outputs folder")
    parser.add_argument("--uri", type=uri, help="MLflow's store or server; the one in the outputs folder if not given")


def add_format(parser: argparse.ArgumentParser, default: str = "text") -> None:
    """In which format the command's table is written, and where to."""
    told = f"of the table: text to stderr, md, csv and json to stdout; {default} if not given"
    parser.add_argument("--format", metavar=",".join(FORMATS), type=table_format, default=default, help=told)


def table_format(text: str) -> str:
    """A format of tables; `table` is what text was called."""
    if (found := "text" if text == "table" else text) not in FORMATS:
        raise argparse.ArgumentTypeError(f"{text}: expected one of {', '.join(FORMATS)}")
    return found


def path(text: str) -> Path:
    """A file or a folder; `~` is the home folder."""
    return Path(expanded(text))


def uri(text: str) -> str:
    """Address of a store or server; one that cannot be any is not repeated, as it may hold a password."""
    if (expected := unusable_address(text)) is not None:
        raise argparse.ArgumentTypeError(f"{HIDDEN}: expected {expected}")
    return text


def share(text: str) -> float:
    """`0.5%` or `0.005`."""
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected a share such as 0.5% or 0.005")
    return value


def add_even_if_busy(parser: argparse.ArgumentParser) -> None:
    """Whether a verdict is wanted although it may be of what else the machine did."""
    told = "runs that were measured on a busy machine count as any others"
    parser.add_argument("--even-if-busy", action="store_true", help=told)


def kind_and_share(text: str) -> tuple[str, float]:
    """`speed=3%`."""
    kind, _, value = text.partition("=")
    return kind, share(value)


def compare() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench compare",
        description="Of each metric that recorded runs A and B have, the ratio B / A with its 95% interval, and "
        "whether B is faster, slower, within noise, or that is undecided, and what is possible. Of whole sweeps, each "
        "job is compared with its like.",
        epilog=f"A and B are {SELECTOR_HELP}. Where a side has several runs of one configuration, each counts "
        "as one value; else samples do, and the interval is widened by what starts of the same thing differ by: "
        "of this device's recorded runs in the outputs folder, or what is built in.",
    )
    parser.add_argument("a", metavar="A")
    parser.add_argument("b", metavar="B")
    parser.add_argument("--margin", type=share, help="ratios of speed nearer to 1 are no verdict: 1%% if not given")
    add_format(parser)
    add_even_if_busy(parser)
    add_places(parser)
    return parser


def gate() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench gate",
        description="Measures every row of a baseline now, or takes recorded runs, and fails where speed, compile "
        "time, memory, quality or energy is worse beyond noise. What is worse when it is measured is measured again, "
        "and held against the baseline with all its runs. Only on the device that the baseline is of. Exit code 1 if "
        "anything is worse, 3 if there is no verdict, as the machine was busy with something else.",
        epilog=f"RUN is {SELECTOR_HELP}. Example: gptbench gate --record h200.yaml --run 'experiment=llama2_7b_bf16' "
        "--repeats 3; later, after a change: gptbench gate --baseline h200.yaml --repeats 3",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--baseline", metavar="FILE", help="a baseline with rows: a file, or the name of a shipped one")
    what.add_argument("--record", metavar="FILE", type=path, help="write a baseline instead")
    parser.add_argument("runs", metavar="RUN", nargs="*", help="recorded runs, instead of measuring")
    parser.add_argument("--partial", action="store_true", help="rows without a run do not fail")
    parser.add_argument(
        "--run", metavar="OVERRIDES", action="append", default=[], help="with --record: measure this, in one argument"
    )
    parser.add_argument("--repeats", type=int, default=1, help="how often each is measured, in turns: 1")
    parser.add_argument("--strict", action="store_true", help="what is undecided fails, too")
    parser.add_argument("--force", action="store_true", help="with --record: replace the file")
    parser.add_argument(
        "--margin",
        metavar="KIND=SHARE",
        type=kind_and_share,
        action="append",
        default=[],
        help="with --record: up to where a difference is noise, such as speed=3%% where machines of one kind differ",
    )
    parser.add_argument(
        "--set", metavar="OVERRIDE", action="append", default=[], help="one more override of all that is measured"
    )
    add_even_if_busy(parser)
    add_format(parser)
    add_places(parser)
    return parser


def ab() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench ab",
        description="Measures two configurations in turns, in one process: A B B A B A A B and so on. Each round makes "
        "both engines anew and gives one ratio; it ends when the 95% interval around their mean is narrow enough, or "
        "the time is over.",
        epilog="Example: gptbench ab 'engine=fused' 'engine=inductor' model=llama3_2_1b workload=gpt_fast. Both "
        "engines are in memory at once. Compile times are not compared: torch's usual cache is used.",
    )
    parser.add_argument("a", metavar="A", help="overrides of A, in one argument: 'quant=none engine=fused'")
    parser.add_argument("b", metavar="B", help="overrides of B")
    parser.add_argument("shared", metavar="OVERRIDE", nargs="*", help="overrides of both, before their own")
    parser.add_argument(
        "--half-width", type=share, default=0.005, help="of the interval around the ratio of decode tokens/s: 0.5%%"
    )
    parser.add_argument("--budget-s", type=float, default=300.0, help="seconds for all rounds: 300")
    parser.add_argument(
        "--margin", type=share, default=0.005, help="ratios nearer to 1 are no verdict, however sure: 0.5%%"
    )
    parser.add_argument("--config-dir", metavar="DIR", help="folder with configurations of your own")
    add_format(parser)
    return parser


def report() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench report",
        description="Writes one HTML file with tables and charts of recorded runs. It needs no network and no script.",
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
        help="further targets: a file, or one of conf/baseline; may be given several times",
    )
    parser.add_argument("--title", default="gptbench", help="heading of the page")
    return parser


def explain() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench explain",
        description="Where the time of a run's decode step goes: bytes, boundaries, attention, sampling, host; how far "
        "it is from the limit; and what would help. task.breakdown=true in the run tells most.",
        epilog=f"RUN is {SELECTOR_HELP}; of several, the latest is explained.",
    )
    parser.add_argument("run", metavar="RUN")
    add_format(parser)
    add_places(parser)
    return parser


def rows() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench rows",
        description="Recorded runs as PyTorch's gpt_fast benchmark reports its own: name, metric, target, actual, "
        "dtype, device, arch, is_model. Without a file to write to, as CSV to stdout.",
        epilog=f"RUN is {SELECTOR_HELP}. Tokens/s take in the prefill there.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+")
    parser.add_argument(
        "--baseline", default="a100_40gb", help="where targets are from, a file or a shipped one: a100_40gb"
    )
    parser.add_argument("--csv", metavar="FILE", type=path, help=f"write CSV; {REPLACED}")
    parser.add_argument("--json", metavar="FILE", type=path, help="write records of PyTorch's benchmark database (v3)")
    parser.add_argument(
        "--by",
        choices=("inductor", "kernel", "library"),
        default="inductor",
        help="whose micro-benchmarks: Inductor's, which the benchmark is of, our kernels', or the library's",
    )
    add_format(parser, "csv")
    add_places(parser)
    return parser


def export() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench export",
        description="Writes recorded runs as one table with a row for each: the overrides that its sweep varied, its "
        "metrics, its identity, device and commit. csv and json hold every metric in base units (seconds, bytes); md "
        "holds the main ones as people read them.",
        epilog=f"RUN is {SELECTOR_HELP}. Of a sweep, each job is a row, failed ones included.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+")
    add_format(parser, "csv")
    parser.add_argument("--metrics", metavar="NAME,…", help="only these, in this order: decode_tokens_per_s,mbu")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=path, help=f"write to a file, and not to stdout; {REPLACED}"
    )
    add_places(parser)
    return parser


def listing() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench list",
        description="What can be chosen: models with their sizes, engines and whether they run here, quants with their "
        "bits, experiments with the overrides that they stand for, metrics with their meanings, and the other groups "
        "of the configuration. Without a name, an overview.",
        epilog="--plugin FILE adds what a plugin brings. csv and json have sizes in bytes.",
    )
    parser.add_argument("what", metavar="NAME", nargs="?", choices=LISTS, help=", ".join(LISTS))
    add_format(parser)
    parser.add_argument("--config-dir", metavar="DIR", help="folder with configurations of your own")
    return parser


def log() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench log",
        description="Logs recorded results to MLflow; what is there already is left as it is.",
        epilog="Without options, a result goes where its own configuration says; one that was recorded with "
        "tracking=none goes to the store in the outputs folder.",
    )
    parser.add_argument("results", metavar="RESULT", nargs="+", type=path, help="a result.json or kernels.json")
    parser.add_argument("--uri", type=uri, help="MLflow tracking server or store")
    parser.add_argument("--experiment", metavar="NAME", help="MLflow experiment")
    parser.add_argument("--outputs", metavar="DIR", type=path, help="outputs folder, with the embedded store")
    return parser


def sync() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench sync",
        description="Logs to MLflow all that is recorded in the outputs folder and not logged yet, because the server "
        "was away, or a process was killed before it had logged. Sweeps whose process was killed get their end.",
        epilog="Each goes where its own configuration says; what was recorded with tracking=none stays where it is.",
    )
    parser.add_argument("--outputs", metavar="DIR", type=path, default=Path("outputs"), help="outputs folder")
    parser.add_argument(
        "--uri",
        type=uri,
        help="address with user and password, which no record holds, for those that go to this address",
    )
    parser.add_argument("--all", action="store_true", help="ask also for what was logged: the store may have been lost")
    return parser


def cache() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gptbench cache",
        description="Saves what was compiled and tuned on this machine, so that a later start, or another machine of "
        "the same kind, need not do it again.",
        epilog="All of TorchInductor's and Triton's cache folders is saved; runs with engine.fresh_cache=true leave "
        "nothing there. A cache file is code that the next run executes: load only what you trust.",
    )
    parser.add_argument("action", choices=("save", "load"), help="write FILE, or add what it holds to the caches")
    parser.add_argument("file", metavar="FILE", type=path, help="cache file, a zip")
    parser.add_argument("--outputs", metavar="DIR", type=path, default=Path("outputs"), help="folder with the tiles")
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
"""By command."""
INTERMIXED = ("ab", "gate")
"""Commands whose options may stand between what they are about."""


def parsed(command: str, arguments: Sequence[str]) -> argparse.Namespace:
    """What a command is given. Ends the process with exit code 2 where that is wrong."""
    parser = PARSERS[command]()
    return (parser.parse_intermixed_args if command in INTERMIXED else parser.parse_args)(list(arguments))
