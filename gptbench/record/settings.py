"""How MLflow is set up and told of: its own settings, errors and addresses."""

import contextlib
import math
import os
from collections.abc import Iterator

from gptbench.base.errors import first_line
from gptbench.base.redaction import HIDDEN, redacted
from gptbench.config import MLflowConfig


def mlflow_settings(config: MLflowConfig) -> dict[str, str | None]:
    """Environment variables, which is where MLflow reads these from; None is for one that must not be there."""
    seconds = str(math.ceil(config.timeout_s))  # MLflow refuses fractions
    return {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": seconds,
        "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": seconds,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(config.retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # which may be hours
        "PGCONNECT_TIMEOUT": seconds,  # of PostgreSQL's own library, without a server of MLflow's
        "MLFLOW_ACTIVE_MODEL_ID": None,  # each metric would be tied to that model, too
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # our last line there is JSON
        "MLFLOW_LOGGING_LEVEL": "ERROR",  # what goes wrong is in our own error
        "MLFLOW_DISABLE_TELEMETRY": "true",  # its threads would run on while a sweep's next job is timed
    }


@contextlib.contextmanager
def environment_variables(values: dict[str, str | None]) -> Iterator[None]:
    """Sets environment variables for a while, and removes those that are to be None."""
    before = {name: os.environ.get(name) for name in values}
    set_environment(values)
    try:
        yield
    finally:
        set_environment(before)


def set_environment(values: dict[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def reason(error: BaseException) -> str:
    """An error in one line. What the operating system said explains more than what was made of it on the way up."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    system = [(cause.strerror or str(cause)).strip() for cause in chain if isinstance(cause, OSError)]
    said = [text for text in system if text]
    return first_line(said[-1] if said else error)


def place_of(uri: str) -> str:
    """Of a store, whoever asks it: its address without user and password."""
    return redacted(uri).replace(f"{HIDDEN}@", "")
