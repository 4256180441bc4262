"""The one exception that reaches a user as a single line."""

from __future__ import annotations


class GoalgenError(Exception):
    """Something the user can mend: the message says what is wrong and what to do, on one line.

    The command line prints it without a traceback and exits with status 2. Library users catch it
    as an ordinary exception.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(str(message).split()))
