"""Private parts of MLflow that gptbench relies on.

- ``mlflow.store.db.utils`` creates and migrates the tables of a store, and knows whether they are of this version
  (`is_current`, `migrate`); it creates the folder that an address seems to name, which quoting can change
  (`make_no_folders`), and tries to open a database `MAX_RETRY_COUNT` times, for 100 s (`try_opening`).
- The web interface reads what to show from the query after ``#/experiments/ID/runs`` (`charts_query`).
"""

from typing import TYPE_CHECKING, Any

from gptbench.private import part

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


def utils(name: str) -> Any:
    """Return one of MLflow's functions for database stores. Raises UserError."""
    return part("mlflow.store.db.utils", name)


def try_opening(times: int) -> None:
    """Sets how often MLflow tries to open a database that does not answer."""
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = times


def make_no_folders() -> None:
    """Keeps MLflow from creating the folder of a store."""
    from mlflow.store.db import utils

    utils._make_parent_dirs_if_sqlite = no_folder  # type: ignore[assignment]


def no_folder(_: str) -> None:
    """Replaces MLflow's function, which takes the address, and does nothing."""


def engine_of(address: str) -> "Engine":
    """Return MLflow's SQLAlchemy engine for an address. Raises UserError."""
    return utils("create_sqlalchemy_engine")(address)


def is_current(engine: "Engine") -> bool:
    """Whether a store has all tables in the version of the installed MLflow. Raises UserError."""
    if not utils("_all_tables_exist")(engine):
        return False
    return bool(utils("_get_schema_version")(engine) == utils("_get_latest_schema_revision")())


def migrate(engine: "Engine") -> None:
    """Creates the tables of the installed MLflow, or upgrades older ones. Raises UserError."""
    step = "_upgrade_db" if utils("_all_tables_exist")(engine) else "_initialize_tables"
    utils(step)(engine)


def charts_query(search: str, metric: str) -> dict[str, str]:
    """Return the query that makes an experiment's page show charts of the runs that match a search.

    Args:
        metric: metric by which the runs are sorted, the highest first.
    """
    return {
        "searchFilter": search,
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",  # otherwise the page shows the views for traces of language models
    }
