"""Runs in an MLflow store: the tags that identify them, how they are found, and where MLflow's pages show them."""

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
"""Tag with the sha256 of `result.json`, which identifies a result."""
SWEEP_TAG = "gptbench.sweep"
"""Tag of a sweep's parent run with the folder of the sweep."""
PARENT_TAG = "mlflow.parentRunId"
NOTE_TAG = "mlflow.note.content"
"""Tag with Markdown that MLflow shows at the top of a run's page."""


PLAIN_VALUE = re.compile(r"[\w /:.,=+@~-]*", re.ASCII)
"""Text that is valid between the quotes of an MLflow filter; a quote in it cannot be escaped."""


def runs_with_tag(client: "MlflowClient", experiment: str, tag: str, value: str) -> list["Run"]:
    """Return the runs that are not deleted and whose tag has the value, whatever characters are in it."""
    if PLAIN_VALUE.fullmatch(value):
        return list(client.search_runs([experiment], f"tags.`{tag}` = '{value}'"))
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs([experiment], f"tags.`{tag}` LIKE '%'", page_token=token)
        runs += [run for run in page if run.data.tags.get(tag) == value]
        if not (token := page.token):
            return runs


def first_run(client: "MlflowClient", experiment: str, condition: str) -> "Run | None":
    """Return the first run of the experiment for which the condition holds, unless it was deleted; None if there is
    none."""
    return next(iter(client.search_runs([experiment], condition, max_results=1)), None)


def charts_of_jobs(experiment: str, parent: str) -> str:
    """Return the address of MLflow's charts of a sweep's jobs, fastest first. In the list of all runs the jobs are
    folded under their parent, and its charts leave them out."""
    query = charts_query(f"tags.mlflow.parentRunId = '{parent}'", HEADLINE)
    return f"#/experiments/{experiment}/runs?{urllib.parse.urlencode(query, quote_via=urllib.parse.quote)}"


def folder_address(folder: Path) -> str:
    """Return the address of a folder for artifacts: its path, unless MLflow would unquote it."""
    return folder.as_uri() if "%" in str(folder) else str(folder)
