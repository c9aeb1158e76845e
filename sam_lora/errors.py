"""The one exception that scripts turn into a one-line message."""


class UserError(Exception):
    """A mistake in what the user gave: shown as one line, exit code 1, no traceback.

    The message names the path, what was found, what was expected and, where it helps, what to run.
    """
