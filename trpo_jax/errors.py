"""Errors that say what to write instead."""


class UsageError(ValueError):
    """A value that cannot work; the message says what to write instead."""


class UsageTypeError(TypeError):
    """An argument of the wrong type; the message says what to write instead."""
