"""Every error a user can meet: one line saying what went wrong, a hint with what to try, an exit code.

The wording: lower case, no full stop, the bad value shown. Anything that is not one of these is a bug.
"""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes of the `holdfast` command."""

    OK = 0
    """Done; for `status`: everything asked about is up."""
    FAILED = 1
    """It did not work; the message says why."""
    USAGE = 2
    """The command line, or your ssh configuration, is wrong."""
    NOT_UP = 3
    """What was named, or asked about, is not up, nor idle."""
    NEEDS_LOGIN = 4
    """A person must log in."""
    BUG = 70
    """A bug in holdfast; the message says where the traceback is."""
    INTERRUPTED = 130
    """Ctrl-C."""


class HoldfastError(Exception):
    """The base of all errors that are told to the user.

    `message` says what went wrong, with the value; `hint` names what to try, or is empty;
    `exit_code` is what the command line ends with.
    """

    exit_code: Exit = Exit.FAILED

    def __init__(self, message: str, hint: str = "", exit_code: Exit | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(HoldfastError):
    """The command line or the configuration is wrong; nothing was started."""

    exit_code = Exit.USAGE


class LoginNeeded(HoldfastError):
    """Only a person can log in to the host: `holdfast up` in a terminal."""

    exit_code = Exit.NEEDS_LOGIN


class TookTooLong(HoldfastError, TimeoutError):
    """It wasn't there in the time that was given."""


class KeeperError(HoldfastError):
    """The keeper can't be reached, started or understood."""


class MasterError(HoldfastError):
    """A master doesn't answer, or answers what the multiplexing protocol doesn't allow."""
