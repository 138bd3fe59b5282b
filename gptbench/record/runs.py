"""Runs in a store of MLflow's: the tags that they are known by, how they are found, and where its pages show them."""

import re
import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from gptbench.private.mlflow import charts_query
from gptbench.schema.metrics import HEADLINE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

RESULT_TAG = "gptbench.result"
"""sha256 of `result.json`: by it a result is known again."""
SWEEP_TAG = "gptbench.sweep"
"""Folder of the sweep, on its parent run."""
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
"""Markdown, which MLflow's page of a run begins with."""


PLAIN_VALUE = re.compile(r"[\w /:.,=+@~-]*", re.ASCII)
"""Text that a filter of MLflow's takes in quotes as it is; there is no way to quote a quote in one."""


def runs_with_tag(client: "MlflowClient", experiment: str, tag: str, value: str) -> list["Run"]:
    """Runs that are not deleted and whose tag has the value, whatever is in that."""
    if PLAIN_VALUE.fullmatch(value):
        return list(client.search_runs([experiment], f"tags.`{tag}` = '{value}'"))
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{tag}` LIKE '%'", page_token=token)
        found += [run for run in page if run.data.tags.get(tag) == value]
        if not (token := page.token):
            return found


def first_run(client: "MlflowClient", experiment: str, condition: str) -> "Run | None":
    """The run of the experiment for which the condition holds, unless it was deleted."""
    return next(iter(client.search_runs([experiment], condition, max_results=1)), None)


def charts_of_jobs(experiment: str, parent: str) -> str:
    """Where MLflow's pages show charts of a sweep's jobs, the fastest first. In the list of all runs they are folded up
    under their parent, and the charts beside it know nothing of them."""
    query = charts_query(f"tags.mlflow.parentRunId = '{parent}'", HEADLINE)
    return f"#/experiments/{experiment}/runs?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"


def folder_address(folder: Path) -> str:
    """Of a folder for artifacts: its path, unless MLflow would take that for a quoted one."""
    return folder.as_uri() if "%" in str(folder) else str(folder)
