"""Record: which engine runs each region of a plan, and the measurements by which it was chosen; kept as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .frames import Loop


@dataclass
class Candidate:
    """An engine that was tried for a region: either its time or the reason why it was not used."""

    engine: str
    seconds: float | None = None
    """Median time of the region within the whole model's call."""
    setup: float | None = None
    """Seconds to build it."""
    reason: str | None = None


@dataclass
class RegionRecord:
    """A region's engine. ``sizes`` are those of its inputs in the example's call."""

    engine: str
    sizes: list[list[int]]
    modules: list[str] = field(default_factory=list)
    operators: int = 0
    candidates: list[Candidate] = field(default_factory=list)


@dataclass
class OtherSize:
    """Engines for calls that are nearer to another size than to the example's."""

    sizes: list[list[int]]
    """Of the tensors of the call that was measured there."""
    tensor: int
    """Calls in which this one has fewer elements than ``limit`` are nearer to the smaller one of the two sizes."""
    limit: float
    smaller: bool
    """Whether that is this size, not the example's."""
    engines: list[str]
    """Of each region."""
    seconds: float
    instead: float
    """The time there by the engines for the example."""

    def is_near(self, elements: int) -> bool:
        """Whether these engines run a call whose ``tensor`` has so many elements."""
        return (elements < self.limit) == self.smaller


@dataclass
class Inside:
    """Seconds of the call of the model that the module is in."""

    engines: list[str]
    """Of each region; they were the fastest alone."""
    own: float
    """By these, of which some have threads of their own."""
    pytorch: float
    """By engines that work by PyTorch's threads."""


@dataclass
class Record:
    """The choice for one module. Times are of the example's call, in seconds: of the module's own forward with fast
    LSTMs, and by the engines."""

    regions: list[RegionRecord]
    precision: str | None = None
    eager: float | None = None
    fast: float | None = None
    threads: int = 0
    cached: bool = False
    """Whether it was read from the disk."""
    whole: list[Candidate] = field(default_factory=list)
    """Engines that were tried for the module as a whole, with its LSTMs."""
    parts: float | None = None
    """The time of the best engines for the parts around its LSTMs, where that was compared with ``whole``."""
    other: OtherSize | None = None
    inside: Inside | None = None
    """Of a module that was captured without the model around it."""
    loop: Loop | None = None
    """The loop over frames that runs as one call of the module; the sizes and times of the regions are of that call."""

    @property
    def gains(self) -> bool:
        """Whether the engines are used: they were measured to be faster, or are named by the user."""
        if self.loop is not None:
            return self.loop.gains
        if all(region.engine == "eager" for region in self.regions):
            return False
        return self.eager is None or self.fast is None or self.fast < self.eager

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(data: dict[str, Any]) -> Record:
        """The record of ``to_json``.

        Raises:
            KeyError, TypeError: the data is not that of a record.
        """
        regions = [
            RegionRecord(**{**region, "candidates": [Candidate(**c) for c in region["candidates"]]})
            for region in data["regions"]
        ]
        loop = None if data.get("loop") is None else Loop(**data["loop"])
        other = None if data["other"] is None else OtherSize(**data["other"])
        inside = None if data["inside"] is None else Inside(**data["inside"])
        whole = [Candidate(**c) for c in data["whole"]]
        parsed = {"regions": regions, "whole": whole, "other": other, "inside": inside, "loop": loop}
        return Record(**{**data, **parsed})


def ms(seconds: float) -> str:
    """A time as text."""
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"
