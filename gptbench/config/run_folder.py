"""The folder that Hydra makes for a single run before gptbench sees its configuration, and how to undo that."""

import contextlib
import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

HYDRAS = ("config.yaml", "hydra.yaml", "overrides.yaml")
"""Files that Hydra writes to the subfolder."""
MAX_EMPTY = 2
"""Number of folders above the run's that Hydra may have made for it: the day's, and the outputs."""

before: dict[Path, set[Path]] = {}
"""Folders of runs mapped to the paths that existed before Hydra made them, see `existing`."""


def remember(composed: DictConfig) -> None:
    """Note what exists already where Hydra is about to make the folder of a run."""
    with contextlib.suppress(OmegaConfBaseException):  # a name that only Hydra can resolve
        folder = Path(os.path.normpath(Path(str(OmegaConf.select(composed, "hydra.run.dir"))).absolute()))
        before[folder] = existing(folder, composed.hydra.output_subdir)


def folders_of(folder: Path, subfolder: str | None) -> list[Path]:
    """Return the folders that Hydra may make, innermost first."""
    return [*([folder / subfolder] if subfolder else []), folder, *folder.parents[:MAX_EMPTY]]


def existing(folder: Path, subfolder: str | None) -> set[Path]:
    """Return those of the folders that exist, and the entries of the run's folder and of its subfolder."""
    folders = folders_of(folder, subfolder)
    found = {path for path in folders if path.is_dir()}
    for path in (folder, folders[0]):
        with contextlib.suppress(OSError):
            found |= set(path.iterdir())
    return found


def forget(folder: Path, subfolder: str | None) -> None:
    """Remove what Hydra wrote to a run's folder before the run began, and the folders that it made. Whatever existed
    before stays, and nothing is removed if anything else was added."""
    if folder not in before:
        return
    folders = folders_of(folder, subfolder)
    new = existing(folder, subfolder) - before[folder]
    written = {path for path in new if path not in folders}
    known = {folder / subfolder / name for name in HYDRAS} if subfolder else set()
    logs = {path for path in written if path.suffix == ".log" and path.is_file() and not path.stat().st_size}
    if not written <= known | logs:
        return
    for path in written:
        path.unlink()
    with contextlib.suppress(OSError):  # not empty
        for path in folders:
            if path in new:
                path.rmdir()
