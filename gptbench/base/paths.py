"""Paths of the files that ship with gptbench."""

from pathlib import Path

SELECTOR_HELP = (
    "a record or a folder of records, the first digits of the identity of a run or a sweep, "
    "mlflow:FILTER with an MLflow filter, an MLflow run id, or latest"
)
"""Description of how to name recorded runs, for the help of commands."""


def shipped_folder() -> Path:
    """Return the folder of the package, in which the demo checkpoint lies beside the code."""
    return Path(__file__).parents[1]


def conf_folder() -> Path:
    """Return `conf/` of the checkout, or its copy in an installed package."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
