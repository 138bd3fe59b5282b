"""Finds a checkpoint by a folder or by the name of a model in this machine's Hugging Face cache; uses no network."""

import os
import re
from pathlib import Path

from gptbench.base.errors import CheckpointError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
"""Name of a model on the Hugging Face hub, ORGANISATION/NAME, with an optional revision after an @."""
DEFAULT_REVISION = "main"


def expanded(path: str) -> str:
    """Return a path with a leading `~` replaced by the user's home folder."""
    try:
        return str(Path(path).expanduser()) if path.startswith("~") else path
    except RuntimeError:  # `~name` of a user that does not exist
        return path


def find_checkpoint(given: str) -> str:
    """Return the folder of a checkpoint.

    Args:
        given: a folder, which may be one of the cache's (`models--…`), or the name of a model.

    Raises:
        CheckpointError: it is the name of a model that is not in the cache. A missing folder is no error here.
    """
    folder = Path(expanded(given))
    if folder.is_dir():
        return str(snapshot(folder, DEFAULT_REVISION) or folder)
    if not is_hub_name(given):
        return str(folder)
    name, _, revision = given.partition("@")
    cached = cache_folder() / f"models--{name.replace('/', '--')}"
    if (files := snapshot(cached, revision or DEFAULT_REVISION)) is not None:
        return str(files)
    option = f" --revision {revision}" if revision else ""
    raise CheckpointError(
        f"model.checkpoint={given}: no such folder, and no such model in the Hugging Face cache ({cache_folder()}); "
        f"to download it: hf download {name}{option}; then: gptbench {given}"
    )


def is_hub_name(given: str) -> bool:
    """Whether a text looks like the name of a model on the hub, and is not an existing path."""
    return NAME.fullmatch(given) is not None and ".." not in given and not Path(given).exists()


def cache_folder() -> Path:
    """Return the folder of the Hugging Face cache, according to the environment variables that huggingface_hub
    reads."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if folder := os.environ.get(variable):
            return Path(expanded(folder))
    if home := os.environ.get("HF_HOME"):
        return Path(expanded(home)) / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or expanded("~/.cache")) / "huggingface" / "hub"


def snapshot(folder: Path, revision: str) -> Path | None:
    """Return the folder with the files of a revision in a model's folder of the cache; None if there is none.

    A revision is a commit or a name for one. If the cache has no name for the default revision but a single commit,
    that commit is used.
    """
    snapshots = folder / "snapshots"
    if not folder.name.startswith("models--") or not snapshots.is_dir():
        return None
    try:
        commit = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        commit = revision
    if commit and (files := snapshots / commit).is_dir():
        return files
    commits = [path for path in snapshots.iterdir() if path.is_dir()]
    return commits[0] if len(commits) == 1 and revision == DEFAULT_REVISION else None
