"""PyTorch's idle threads leave their cores to engines that have threads of their own: csrc/torch/python/idle_team.h."""

from .. import _native

if _native.available:
    from .._guard import end_idle_team, use_idle_team
else:

    def end_idle_team() -> None:
        """There is none without the native part, which no engine is used without."""

    use_idle_team = end_idle_team

__all__ = ["end_idle_team", "use_idle_team"]
