"""What gptbench relies on of MLflow beyond what MLflow promises to keep.

- ``mlflow.store.db.utils`` makes and migrates the tables of a store, and tells whether they are of this version
  (`is_current`, `migrate`); it makes the folder that an address seems to name, which quoting makes another
  (`make_no_folders`), and tries to open a database `MAX_RETRY_COUNT` times, for 100 s (`try_opening`).
- The pages take what to show from the query behind ``#/experiments/ID/runs`` (`charts_query`).
"""

from typing import TYPE_CHECKING, Any

from gptbench.private import part

if TYPE_CHECKING:
    from sqlalchemy.engine import Engine


def utils(name: str) -> Any:
    """One of the functions of MLflow's for stores in databases. Raises UserError."""
    return part("mlflow.store.db.utils", name)


def try_opening(times: int) -> None:
    """Has MLflow try so often to open a database that does not answer."""
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = times


def make_no_folders() -> None:
    """Has MLflow leave the folder of a store to whoever names it."""
    from mlflow.store.db import utils

    utils._make_parent_dirs_if_sqlite = no_folder  # type: ignore[assignment]


def no_folder(_: str) -> None:
    """In the place of MLflow's function, which gets the address."""


def engine_of(address: str) -> "Engine":
    """SQLAlchemy's, as MLflow makes it. Raises UserError."""
    return utils("create_sqlalchemy_engine")(address)


def is_current(engine: "Engine") -> bool:
    """Whether a store has all tables, as this version of MLflow makes them. Raises UserError."""
    if not utils("_all_tables_exist")(engine):
        return False
    return bool(utils("_get_schema_version")(engine) == utils("_get_latest_schema_revision")())


def migrate(engine: "Engine") -> None:
    """Makes all tables of this version of MLflow, or makes them of older ones. Raises UserError."""
    step = "_upgrade_db" if utils("_all_tables_exist")(engine) else "_initialize_tables"
    utils(step)(engine)


def charts_query(search: str, metric: str) -> dict[str, str]:
    """What has the page of an experiment's runs show charts of those that are found, the highest of a metric first."""
    return {
        "searchFilter": search,
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",  # else the pages beside it are those for language models' traces
    }
