"""Parts of libraries that these do not promise to keep: looked up where they are used, so that a version that has
renamed one breaks what needs it and nothing else, in words that say so."""

import importlib
import importlib.metadata
from typing import Any

from gptbench.errors import UserError


def private(module: str, name: str) -> Any:
    """What a module of a library has under a name.

    Raises:
        UserError: there is none in the version that is installed.
    """
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        library = module.partition(".")[0]
        version = importlib.metadata.version(library)
        raise UserError(
            f"{library} {version} has no {module}.{name}, which gptbench uses although {library} does not promise to "
            f"keep it: another version of {library} has (gptbench's constraints.txt names one)"
        ) from error
