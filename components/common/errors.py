"""The errors a user can cause; the command line prints them as one sentence, without a traceback.

ExpungeError
├── UserError        bad input: a name, a value, a combination
├── ArtifactError    a file that is missing, altered, truncated or of another format
└── StageError       a stage that could not finish
    └── TransientError   a lock, a network or a registry that may be there again soon: flows try again
"""

from __future__ import annotations


class ExpungeError(Exception):
    """Fact and value first, the remedy second; `str()` joins them into one sentence."""

    exit_code = 1

    def __init__(self, fact: str, remedy: str) -> None:
        super().__init__(f"{fact}; {remedy}")
        self.fact = fact
        self.remedy = remedy


class UserError(ExpungeError):
    """The user's input is wrong."""

    exit_code = 2


class ArtifactError(ExpungeError):
    """A file on disk is not what it claims to be."""

    exit_code = 3


class StageError(ExpungeError):
    """A stage or flow could not finish."""

    exit_code = 4


class TransientError(StageError):
    """A lock, a network, a database or a registry that cannot be had now; the same call may succeed later."""
