"""The one exception meant for a person who uses eqnet."""


class InputError(ValueError):
    """A mistake in a file, an option or a call; its message is one sentence that says what to do."""
