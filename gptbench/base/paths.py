"""Where the project's own files are."""

from pathlib import Path

SELECTOR_HELP = (
    "a record or a folder with some, the first digits of a run's or a sweep's identity, "
    "mlflow:FILTER with a filter of MLflow's, a run id of MLflow's, or latest"
)
"""How a recorded run may be named, wherever a command takes one."""


def shipped_folder() -> Path:
    """What comes with the package beside code: the demo checkpoint."""
    return Path(__file__).parents[1]


def conf_folder() -> Path:
    """`conf/` of the checkout, or the copy of it that an installed package holds."""
    package = Path(__file__).parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
