"""The table of engines. A new engine is one file beside this one and one line here. Of two that are equally fast, the
first one is chosen."""

from . import eager, inductor, onednn, onnxruntime, openvino
from .base import Engine, Options, Run

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (eager.ENGINE, onednn.ENGINE, onnxruntime.ENGINE, openvino.ENGINE, inductor.ENGINE)
}

__all__ = ["ENGINES", "Engine", "Options", "Run"]
