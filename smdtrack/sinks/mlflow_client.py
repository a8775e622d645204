"""A client of MLflow that prints nothing and whose errors are one line."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from smdtrack.notices import first_line
from smdtrack.sinks.errors import PermanentSinkError
from smdtrack.sinks.mlflow_address import without_secrets

#: MLflow's error codes that do not change by waiting.
_PERMANENT_CODES = frozenset(
    {"UNAUTHENTICATED", "PERMISSION_DENIED", "RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
)
#: Longest time of one request in seconds, in a process that only delivers.
REQUEST_SECONDS = 15
_PERMANENT_STATUS = ("401", "403")


def limit_waiting() -> None:
    """Caps each request of MLflow's client at seconds, in a process of our own: we try again ourselves.

    By default one call waits for minutes while the client itself retries. Values that the user has set are kept.
    """
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))


def open_client(uri: str) -> Any:
    """Returns an `MlflowClient` of the store, whose tables are made if they are missing.

    Raises:
        Exception: What MLflow raises if it cannot be reached.
    """
    from mlflow import MlflowClient

    with _quiet_migrations():
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    # Ending a run on a server prints its address on stdout, which belongs to the script.
    client._tracking_client._log_url = lambda run_id: None
    return client


@contextmanager
def one_line_errors(uri: str) -> Iterator[None]:
    """Turns any error of the block into one line that names the store.

    Raises:
        ConnectionError: If the block raised it; it names the store already.
        PermanentSinkError: If another attempt would fail in the same way.
        RuntimeError: For any other error.
    """
    try:
        yield
    except (ConnectionError, PermanentSinkError):
        raise
    except Exception as error:
        message = f"MLflow at {without_secrets(uri)}: {first_line(error)}"
        raise (PermanentSinkError if _is_permanent(error) else RuntimeError)(message) from error


def is_missing(error: Exception) -> bool:
    """Returns whether MLflow says by an error that there is no such run or experiment."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def _is_permanent(error: Exception) -> bool:
    if getattr(error, "error_code", None) in _PERMANENT_CODES:
        return True
    return any(f"error code {status}" in str(error) for status in _PERMANENT_STATUS)


@contextmanager
def _quiet_migrations() -> Iterator[None]:
    """Hides the lines that the migrations of a new sqlite store log; warnings are still shown."""
    loggers = [logging.getLogger(name) for name in ("mlflow.store.db.utils", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(max(logger.getEffectiveLevel(), logging.WARNING))
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
