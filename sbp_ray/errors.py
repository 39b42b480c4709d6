"""The one exception that means "you can fix this"."""


class SbpError(Exception):
    """Something the user can fix: one line, the fact and then the remedy. Jobs print it and exit with status 1."""


def one_line(error: BaseException) -> str:
    """The first line of a foreign error's message, for quoting inside an `SbpError`."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
