"""Addresses of trackers, fit to be printed and stored."""

from urllib.parse import urlsplit, urlunsplit


def without_secrets(uri: str) -> str:
    """Returns the address without user, password and query, so that it can be printed and stored."""
    if uri.startswith("sqlite:///"):
        return uri
    parts = urlsplit(uri)
    if "@" not in parts.netloc and not parts.query:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=""))
