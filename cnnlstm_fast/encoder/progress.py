"""The progress bar of ``optimize``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .options import Progress


@contextmanager
def progress_bar(after: float = 1.0) -> Iterator[Progress]:
    """A function that takes what is being done. Where it takes longer than ``after`` seconds and standard error is a
    terminal, it is shown there, with the time so far, and erased at the end."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    bar = Bar(
        SpinnerColumn(),
        TextColumn("cnnlstm_fast: {task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task("")
    start = time.monotonic()

    def show(text: str) -> None:
        bar.update(task, description=text)
        if time.monotonic() - start > after:
            bar.start()

    try:
        yield show
    finally:
        bar.stop()
