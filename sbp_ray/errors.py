"""The one exception that means "you can fix this", and how it crosses from one process to another."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

_SIGNS_OF_A_STORE = ("AWS Error ", "google::cloud::Status")
"""In the messages of Arrow's errors, once it has asked often enough: they have no type of their own."""


class SbpError(Exception):
    """Something the user can fix: one line, the fact and then the remedy. Jobs print it and exit with status 1."""


def one_line(error: BaseException) -> str:
    """The first line of a foreign error's message, for quoting inside an `SbpError`."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def did_you_mean(word: str, known: Iterable[str], listed: Iterable[str] | None = None, before: str = "") -> str:
    """What to say of a word that is none of those known: the nearest, with what is written before it, or else those
    that there are."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {before}{near[0]}?" if near else f"there are {', '.join(known if listed is None else listed)}"


def storage_trouble(error: BaseException) -> str:
    """What to say of a full disk, a used-up quota or a store that gives no answer; nothing of any other error.

    Where it is met is many places, so it is looked for at two boundaries: around a worker's item, and around the job.
    """
    cause = getattr(error, "cause", error)  # what a worker raised, where Ray wrapped it
    if not isinstance(cause, OSError):
        return ""
    if cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"there is no room to write ({one_line(cause)}): make room, and run the same command again to go on"
    if any(sign in str(cause) for sign in _SIGNS_OF_A_STORE):
        return f"{one_line(cause)}: see to the store and to its credentials, and run the same command again to go on"
    return ""


class Outcome(NamedTuple):
    """What a call in another process came to.

    An exception does not cross as it is: Ray wraps what a task or an actor raises, and the message of the wrapper is
    the remote traceback. So an error that the user can fix travels as its message.
    """

    value: Any
    message: str = ""
    """Of the `SbpError` that the call ended with; empty where it ended well."""

    def get(self) -> Any:
        """The value, or the `SbpError` raised once more."""
        if self.message:
            raise SbpError(self.message)
        return self.value


def call_for_outcome(function: Callable[..., Any], *arguments: Any) -> Outcome:
    """Call a function where its errors cannot reach the driver. An error that is our own fault is raised as it is.

    In the driver, `call_for_outcome(ray.get, reference).get()` gives what a task raised without its remote traceback.
    """
    try:
        return Outcome(function(*arguments))
    except (SbpError, OSError) as error:
        return _outcome_of(error)


async def wait_for_outcome(work: Awaitable[Any]) -> Outcome:
    """`call_for_outcome` of work that is awaited."""
    try:
        return Outcome(await work)
    except (SbpError, OSError) as error:
        return _outcome_of(error)


def _outcome_of(error: SbpError | OSError) -> Outcome:
    message = str(getattr(error, "cause", error)) if isinstance(error, SbpError) else storage_trouble(error)
    if not message:
        raise error
    return Outcome(None, message)
