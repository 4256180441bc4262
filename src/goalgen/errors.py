"""The one exception that reaches a user as a single line."""

from __future__ import annotations

KEPT = 600
"""Letters of the beginning of a message that is too long."""


def as_line(message: object) -> str:
    """A message as one line, with escapes for what would steer a terminal, as the names of files may hold."""
    line = " ".join(str(message).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in line)


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
