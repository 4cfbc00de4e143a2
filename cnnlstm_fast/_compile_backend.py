"""Makes the name "cnnlstm_fast" known to ``torch.compile``, also where the package runs without having been installed.

An installation has the same entry point (pyproject.toml), by which the name is known before the package is imported.
Neither imports ``torch._dynamo``, which takes a second.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

ENTRY_POINT = EntryPoint("cnnlstm_fast", "cnnlstm_fast.encoder.dynamo:backend", "torch_dynamo_backends")
_REGISTRY = "torch._dynamo.backends.registry"


def register() -> None:
    """Enters the backend into Dynamo's table, now or as soon as Dynamo is imported."""
    registry = sys.modules.get(_REGISTRY)
    if registry is not None:
        _enter(registry)
    else:
        sys.meta_path.insert(0, _OnImport())


def _enter(registry: ModuleType) -> None:
    # not by `register_backend`, which refuses a second entry and would have the backend's module imported
    registry._BACKENDS.setdefault(ENTRY_POINT.name, ENTRY_POINT)


class _OnImport(MetaPathFinder):
    """Finds Dynamo's registry as it would be found without, and enters the backend once it is loaded."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != _REGISTRY:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_enter(module: ModuleType) -> None:
                load(module)
                _enter(module)

            spec.loader.exec_module = load_and_enter  # type: ignore[method-assign]
        return spec
