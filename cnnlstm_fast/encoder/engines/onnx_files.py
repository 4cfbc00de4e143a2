"""ONNX models on disk, so that the next process with the same weights need not export them: that imports much.

A file is a digest of the model, and the model. The oldest ones go where all together take too much room.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import warnings
from pathlib import Path

from ..files import folder, write

MOST_BYTES = 512 << 20
_DIGEST = hashlib.sha256().digest_size


def load(key: str) -> bytes | None:
    """The model that was stored under the key, or None. A damaged one is ignored with a warning."""
    path = folder() / f"{key}.onnx"
    try:
        data = path.read_bytes()
        os.utime(path)  # used now
    except OSError:
        return None
    model = data[_DIGEST:]
    if hashlib.sha256(model).digest() != data[:_DIGEST]:
        warnings.warn(f"cnnlstm_fast: {path} is not used, since it is damaged.", stacklevel=2)
        return None
    return model


def store(key: str, model: bytes) -> None:
    """Keeps the model, if there is room: without it nothing but time is lost."""
    if len(model) > MOST_BYTES or write(f"{key}.onnx", hashlib.sha256(model).digest() + model) is not None:
        return
    with contextlib.suppress(OSError):  # another process may delete, too
        files = sorted(folder().glob("*.onnx"), key=lambda path: path.stat().st_mtime)
        sizes = {path: path.stat().st_size for path in files}
        while sum(sizes.values()) > MOST_BYTES:
            oldest = next(iter(sizes))
            del sizes[oldest]
            Path.unlink(oldest)
