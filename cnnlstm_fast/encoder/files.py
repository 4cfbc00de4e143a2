"""Files in the user's cache, each written as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def folder() -> Path:
    """$XDG_CACHE_HOME/cnnlstm_fast/encoder, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cnnlstm_fast" / "encoder"


def write(name: str, data: bytes) -> str | None:
    """Writes a file of the folder, to a temporary one that is then renamed; returns None, or why it could not."""
    temporary = None
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=folder(), suffix=".tmp", delete=False) as file:
            temporary = file.name
            file.write(data)
        os.replace(temporary, folder() / name)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return error.strerror or str(error)
    return None
