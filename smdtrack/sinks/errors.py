"""Errors of a sink that another attempt does not mend."""


class PermanentSinkError(RuntimeError):
    """The tracker refuses: wrong credentials, a missing run or experiment. The message is one line."""
