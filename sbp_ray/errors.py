"""The one exception that means "you can fix this"."""

import errno


class SbpError(Exception):
    """Something the user can fix: one line, the fact and then the remedy. Jobs print it and exit with status 1."""


def one_line(error: BaseException) -> str:
    """The first line of a foreign error's message, for quoting inside an `SbpError`."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def out_of_room(error: BaseException) -> str:
    """What to say of a full disk or a used-up quota; nothing of any other error.

    Where it is met is many places, so it is looked for at two boundaries: around a worker's item, and around the job.
    """
    cause = getattr(error, "cause", error)  # what a worker raised, where Ray wrapped it
    if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"there is no room to write ({one_line(cause)}): make room, and run the same command again to go on"
    return ""
