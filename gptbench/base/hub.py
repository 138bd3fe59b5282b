"""Where a checkpoint lies that was named: a folder, or a model in Hugging Face's cache on this machine. No network."""

import os
import re
from pathlib import Path

from gptbench.base.errors import CheckpointError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
"""Of a model on the Hugging Face hub, ORGANISATION/NAME, with a revision behind an @."""
DEFAULT_REVISION = "main"


def expanded(path: str) -> str:
    """The same with the user's home folder for a `~` at its beginning."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # of a user that does not exist
        return path


def find_checkpoint(given: str) -> str:
    """The folder of a checkpoint.

    Args:
        given: a folder, also one of the cache's own (`models--…`), or the name of a model.

    Raises:
        CheckpointError: it is the name of a model that is not in the cache. A folder that is not there is not missed
            here.
    """
    folder = Path(expanded(given))
    if folder.is_dir():
        return str(snapshot(folder, DEFAULT_REVISION) or folder)
    if not is_hub_name(given):
        return str(folder)
    name, _, revision = given.partition("@")
    cached = cache_folder() / f"models--{name.replace('/', '--')}"
    if (found := snapshot(cached, revision or DEFAULT_REVISION)) is not None:
        return str(found)
    of_revision = f" --revision {revision}" if revision else ""
    raise CheckpointError(
        f"model.checkpoint={given}: no such folder, and not in the Hugging Face cache ({cache_folder()}); "
        f"to get it: hf download {name}{of_revision}; then: gptbench {given}"
    )


def is_hub_name(given: str) -> bool:
    """Whether it looks like the name of a model on the hub, and is no path to something that is there."""
    return NAME.fullmatch(given) is not None and ".." not in given and not Path(given).exists()


def cache_folder() -> Path:
    """Where the library keeps what it has downloaded, by the variables that it goes by."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(variable):
            return Path(expanded(folder))
    if home := os.environ.get("HF_HOME"):
        return Path(expanded(home)) / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")) / "huggingface" / "hub"


def snapshot(folder: Path, revision: str) -> Path | None:
    """In a model's folder in the cache, the files of a revision; None where there are none, or it is no such folder.

    A revision is a commit, or a name that stands for one; where no name was kept, the only commit counts for the
    default one.
    """
    snapshots = folder / "snapshots"
    if not folder.name.startswith("models--") or not snapshots.is_dir():
        return None
    try:
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = revision
    if commit and (found := snapshots / commit).is_dir():
        return found
    kept = [path for path in snapshots.iterdir() if path.is_dir()]
    return kept[0] if len(kept) == 1 and revision == DEFAULT_REVISION else None
