"""Where an MLflow store is: its address in full, without secrets, and whether something answers there."""

import os
import shlex
import socket
import tempfile
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

#: MLflow's client tries a dead server for half a minute; one connection tells it in this many seconds.
CONNECT_SECONDS = 3.0
_SQLITE = "sqlite:///"
_LOCAL_PORT = 5000


def absolute_uri(uri: str) -> str:
    """Returns the address of a local store with its full path, so that it holds in any folder; others unchanged."""
    if uri.startswith(_SQLITE) and not uri.startswith(_SQLITE + "/") and ":memory:" not in uri:
        path, mark, options = uri.removeprefix(_SQLITE).partition("?")
        return f"{_SQLITE}{Path(path).absolute()}{mark}{options}"
    if "://" not in uri and not uri.startswith(("file:", "databricks", "uc:")) and uri:
        return Path(uri).absolute().as_uri()
    return uri


def default_uri() -> str:
    """Returns the store that is used where nobody has set one: `mlflow.db` in the working directory."""
    return f"{_SQLITE}{Path.cwd() / 'mlflow.db'}"


def without_secrets(uri: str) -> str:
    """Returns the address without user, password and query, so that it can be printed and stored."""
    if uri.startswith(_SQLITE):
        return uri
    parts = urlsplit(uri)
    if "@" not in parts.netloc and not parts.query:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))


def with_credentials(uri: str) -> str:
    """Returns a stored address with the user and password of MLFLOW_TRACKING_URI, if that is the same address."""
    present = environment("MLFLOW_TRACKING_URI")
    return present if present is not None and without_secrets(absolute_uri(present)) == uri else uri


def is_server(uri: str) -> bool:
    """Whether the address is a tracking server's."""
    return urlsplit(uri).scheme in ("http", "https")


def check_reachable(uri: str, seconds: float = CONNECT_SECONDS) -> None:
    """Connects to a tracking server once, or sees whether an sqlite store can be written; others are not tried.

    MLflow itself tries either for minutes. A server behind a proxy is not tried.

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
