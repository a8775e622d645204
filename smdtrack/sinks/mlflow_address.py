"""Addresses of MLflow stores: in full, without secrets, with credentials, and whether something answers there."""

import os
import shlex
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from smdtrack.record.addresses import without_secrets as without_secrets

#: Longest time to connect in seconds. MLflow's client itself tries a server that is down for half a minute.
CONNECT_SECONDS = 3.0
_SQLITE = "sqlite:///"
_LOCAL_PORT = 5000


def absolute_uri(uri: str) -> str:
    """Returns the address of a local store with its full path, so that it is valid in any folder; others unchanged."""
    if uri.startswith(_SQLITE) and not uri.startswith(_SQLITE + "/") and ":memory:" not in uri:
        path, mark, options = uri.removeprefix(_SQLITE).partition("?")
        return f"{_SQLITE}{Path(path).absolute()}{mark}{options}"
    if "://" not in uri and not uri.startswith(("file:", "databricks", "uc:")) and uri:
        return Path(uri).absolute().as_uri()
    return uri


def default_uri() -> str:
    """Returns the store that is used if none is set: `mlflow.db` in the working directory."""
    return f"{_SQLITE}{Path.cwd() / 'mlflow.db'}"


def with_credentials(uri: str) -> str:
    """Returns a stored address with the user and password of MLFLOW_TRACKING_URI, if that is the same address."""
    present = environment("MLFLOW_TRACKING_URI")
    return present if present is not None and without_secrets(absolute_uri(present)) == uri else uri


def is_server(uri: str) -> bool:
    """Returns whether the address is that of a tracking server."""
    return urlsplit(uri).scheme in ("http", "https")


def check_reachable(uri: str, seconds: float = CONNECT_SECONDS) -> None:
    """Connects once to a tracking server, or checks that an sqlite store can be written.

    MLflow itself tries either for minutes. Other stores, and servers behind a proxy, are not checked.

    Raises:
        ConnectionError: If nothing answers or the store cannot be written, in one line that names the address.
    """
    if uri.startswith(_SQLITE) and ":memory:" not in uri:
        _check_writable(Path(uri.removeprefix(_SQLITE).partition("?")[0]), uri)
    if not is_server(uri):
        return
    parts = urlsplit(uri)
    host = parts.hostname
    if not host:
        raise ConnectionError(f"no host in the MLflow tracking URI {without_secrets(uri)!r}")
    if parts.scheme in getproxies() and not proxy_bypass(host):
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((host, port), timeout=seconds).close()
    except (OSError, ValueError) as error:
        raise ConnectionError(f"no MLflow server answers at {without_secrets(uri)}: {error}") from error


def _check_writable(database: Path, uri: str) -> None:
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        if database.exists():
            database.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=database.parent).close()
    except OSError as error:
        raise ConnectionError(f"the MLflow store {without_secrets(uri)} cannot be written: {error.strerror}") from error


def open_hints(uri: str, experiment_id: str, view: str | None) -> list[str]:
    """Returns the command that serves a local store, if it is one, and the address of the view."""
    query = "compareRunsMode=CHART&workflowType=machine_learning"
    if view is not None:
        query = f"viewStateShareKey={view}&{query}"
    page = f"#/experiments/{experiment_id}/runs?{query}"
    if is_server(uri):
        return [f"{without_secrets(uri).rstrip('/')}/{page}"]
    if uri.startswith("databricks"):
        return []
    command = f"mlflow server --backend-store-uri {shlex.quote(without_secrets(uri))} --port {_LOCAL_PORT}"
    return [command, f"http://127.0.0.1:{_LOCAL_PORT}/{page}"]


def environment(name: str) -> str | None:
    """Returns an environment variable; an empty one counts as not set, as for MLflow itself."""
    return os.environ.get(name) or None
