"""Where the project's own files are."""

from pathlib import Path


def shipped_folder() -> Path:
    """What comes with the package beside code: the demo checkpoint."""
    return Path(__file__).parent


def conf_folder() -> Path:
    """`conf/` of the checkout, or the copy of it that an installed package holds."""
    package = Path(__file__).parent
    installed = package / "conf"
    return installed if installed.is_dir() else package.parent / "conf"
