"""Makes the name "cnnlstm_fast" known to ``torch.compile``, also where the package runs without having been installed.

An installation has the same entry point (pyproject.toml), by which the name is known before the package is imported.
Neither imports ``torch._dynamo``, which takes a second.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint
from types import ModuleType

from ._on_import import on_import

ENTRY_POINT = EntryPoint("cnnlstm_fast", "cnnlstm_fast.encoder.dynamo:backend", "torch_dynamo_backends")
_REGISTRY = "torch._dynamo.backends.registry"


def register() -> None:
    """Enters the backend into Dynamo's table, now or as soon as Dynamo is imported."""
    on_import(_REGISTRY, _enter)


def _enter(registry: ModuleType) -> None:
    # not by `register_backend`, which refuses a second entry and would have the backend's module imported
    registry._BACKENDS.setdefault(ENTRY_POINT.name, ENTRY_POINT)
