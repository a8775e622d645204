"""MkDocs hook: leaves navigation entries out whose page does not exist."""

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Called by MkDocs when the configuration is read."""
    config.nav = _existing(config.nav, Path(config.docs_dir))
    return config


def _existing(entry: Any, folder: Path) -> Any:
    if isinstance(entry, list):
        return [kept for item in entry if (kept := _existing(item, folder))]
    if isinstance(entry, dict):
        return {title: kept for title, item in entry.items() if (kept := _existing(item, folder))}
    return entry if (folder / entry).is_file() else None
