"""What every test of the CNN half finds as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cnnlstm_fast.encoder import choose, fold, inside, training
from cnnlstm_fast.encoder.engines import ENGINES


@pytest.fixture(autouse=True)
def _table_in_order() -> Iterator[None]:
    """A test may take engines out of the table: their order matters, and a dict that gets one back has it last."""
    lines = list(ENGINES.items())
    yield
    ENGINES.clear()
    ENGINES.update(lines)


@pytest.fixture(autouse=True)
def _short_measurements(_table_in_order: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests are of what is done with times, not of how exact they are. After the other fixture, which is to
    restore the table when monkeypatch has undone its edits."""
    for module in (choose, fold, inside, training):
        monkeypatch.setattr(module, "MEASURE_SECONDS", 0.2)
