"""The table of engines. A new engine is one file beside this one and one line here."""

from . import eager, inductor, onnxruntime, openvino
from .base import Engine, Options, Run

ENGINES: dict[str, Engine] = {
    engine.name: engine for engine in (eager.ENGINE, inductor.ENGINE, onnxruntime.ENGINE, openvino.ENGINE)
}

__all__ = ["ENGINES", "Engine", "Options", "Run"]
