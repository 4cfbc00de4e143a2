"""Work on a module of PyTorch that is to wait for its import, which takes long and which this package does not need."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

Action = Callable[[ModuleType], None]


def on_import(name: str, action: Action) -> None:
    """Calls the action with the module of that name, now or as soon as it is imported."""
    module = sys.modules.get(name)
    if module is not None:
        action(module)
    else:
        sys.meta_path.insert(0, _OnImport(name, action))


class _OnImport(MetaPathFinder):
    """Finds the module as it would be found without, and runs the action once it is loaded."""

    def __init__(self, name: str, action: Action) -> None:
        self.name, self.action = name, action

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_and_act(module: ModuleType) -> None:
                load(module)
                self.action(module)

            spec.loader.exec_module = load_and_act  # type: ignore[method-assign]
        return spec
