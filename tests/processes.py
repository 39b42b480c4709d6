"""Telling the processes of a cluster apart by their command lines, which may be gone by the time one asks."""

from __future__ import annotations

from contextlib import suppress

import psutil


def command_line(process: psutil.Process) -> str:
    """Empty for a process that has ended."""
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return " ".join(process.cmdline())
    return ""


def is_engine(process: psutil.Process) -> bool:
    """Whether this is the process in which a replica's engine runs.

    Its title says so, unless its environment was changed before it could set one: titles are written over the
    variables, and where the first of them has moved, none is set. Then it is what a replica has spawned.
    """
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        command = command_line(process)
        if "EngineCore" in f"{process.name()} {command}":
            return True
        parent = process.parent()
        return "spawn_main" in command and parent is not None and "SynthesizerServer" in command_line(parent)
    return False
