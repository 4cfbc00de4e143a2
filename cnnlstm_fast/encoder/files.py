"""The encoder's folder in the user's cache."""

from __future__ import annotations

from pathlib import Path

from ..files import cache_folder, write_whole


def folder() -> Path:
    """$XDG_CACHE_HOME/cnnlstm_fast/encoder, by default in ~/.cache."""
    return cache_folder("encoder")


def write(name: str, data: bytes) -> str | None:
    """Writes a file of the folder; returns None, or why it could not."""
    return write_whole(folder() / name, data)
