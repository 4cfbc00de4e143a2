"""Shared by the pages of the demo and the benchmark, each of which is one self-contained HTML file."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, Literal

import jinja2
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FAST = "#0b6bcb"
INK = "#4a5159"
STYLE: dict[Any, Any] = {
    "font.size": 8.5,
    "text.color": INK,
    "axes.edgecolor": "#a9b0b8",
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "cnnlstm_fast",
}
"""The style of all plots, for ``matplotlib.rc_context``."""


def template(path: Path) -> jinja2.Template:
    """The template of a page, with autoescaping."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(path.parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(path.name)


def tidy(axes: Axes, grid: Literal["x", "y", "both"] = "x") -> None:
    """Removes the upper and right spines and adds a faint grid behind the data."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#e6e8eb", linewidth=0.7)
    axes.set_axisbelow(True)


def svg(figure: Figure) -> str:
    """The figure as an <svg> element, with text as paths, so that it needs no font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    drawing = buffer.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.DOTALL)
