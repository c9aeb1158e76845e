"""The one exception that scripts report in a single line."""


class UserError(Exception):
    """A mistake in the user's input: one line on stderr and exit code 1, no traceback.

    The message names the path, what was found, what was expected and, where it helps, what to run.
    """
