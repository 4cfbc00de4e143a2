"""The former names of ``peaks``, which ``bench.calibrate.micro`` still imports."""

from .peaks import Roofline as Ceilings
from .peaks import measure

__all__ = ["Ceilings", "measure"]
