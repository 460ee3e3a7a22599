"""The exception for mistakes that a user can mend: it says what was given, what is allowed, and what to type."""


class UserError(ValueError):
    """A wrong input. The command line prints `error: <message>` and exits with status 2, without a traceback."""
