"""Why a module is not captured."""


class CannotCaptureError(Exception):
    """The module stays eager; the message is the reason."""
