"""The one exception that reaches a user as a single line."""

from __future__ import annotations

KEPT = 600
"""Letters of the beginning of a message that is too long."""


class GoalgenError(Exception):
    """Something the user can mend: the message says what is wrong and what to do, on one line.

    The command line prints it without a traceback and exits with status 2. Library users catch it
    as an ordinary exception.
    """

    def __init__(self, message: str) -> None:
        line = " ".join(str(message).split())
        if len(line) > 2 * KEPT:  # what a damaged file says may be long; beginning and end are the message's own
            line = f"{line[:KEPT]} ... {line[-KEPT // 2 :]}"
        super().__init__(line)
