"""Files in the user's cache, each written as a whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path


def cache_folder(part: str) -> Path:
    """The folder of a part of the package: $XDG_CACHE_HOME/cnnlstm_fast/PART, by default in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "cnnlstm_fast" / part


def write_whole(path: Path, data: bytes) -> str | None:
    """Writes a temporary file, which is then renamed; returns None, or why it could not."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            file.write(data)
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        return error.strerror or str(error)
    return None
