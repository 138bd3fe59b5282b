"""MLflow's settings, errors and addresses."""

import contextlib
import math
import os
from collections.abc import Iterator

from gptbench.base.errors import first_line
from gptbench.base.redaction import HIDDEN, redacted
from gptbench.config import MLflowConfig


def mlflow_settings(config: MLflowConfig) -> dict[str, str | None]:
    """Return environment variables, from which MLflow reads its settings; None for one that must not be set."""
    seconds = str(math.ceil(config.timeout_s))  # MLflow refuses fractions
    return {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": seconds,
        "MLFLOW_ARTIFACT_UPLOAD_DOWNLOAD_TIMEOUT": seconds,
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(config.retries),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",  # which may be hours
        "PGCONNECT_TIMEOUT": seconds,  # for PostgreSQL's library, when there is no MLflow server
        "MLFLOW_ACTIVE_MODEL_ID": None,  # each metric would also be linked to that model
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the last line on stdout has to be JSON
        "MLFLOW_LOGGING_LEVEL": "ERROR",  # errors are reported by gptbench
        "MLFLOW_DISABLE_TELEMETRY": "true",  # its threads would keep running while a sweep's next job is timed
    }


@contextlib.contextmanager
def environment_variables(values: dict[str, str | None]) -> Iterator[None]:
    """Set environment variables while the context lasts, and remove those that are None."""
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
    """Return an error in one line. The operating system's message in the chain explains more than what was made of
    it."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)
    system = [(cause.strerror or str(cause)).strip() for cause in chain if isinstance(cause, OSError)]
    messages = [text for text in system if text]
    return first_line(messages[-1] if messages else error)


def place_of(uri: str) -> str:
    """Return the address of a store without user and password, which is the same for every user."""
    return redacted(uri).replace(f"{HIDDEN}@", "")
