"""Telling vLLM's engine from the other processes of a cluster."""

from __future__ import annotations

from contextlib import suppress

import psutil


def is_engine(process: psutil.Process) -> bool:
    """Whether this is the process in which a replica's engine runs.

    Its title says so, unless its environment was changed before it could set one: titles are written over the
    variables, and where the first of them has moved, none is set. Then it is what a replica has spawned.
    """
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        command = " ".join(process.cmdline())
        if "EngineCore" in f"{process.name()} {command}":
            return True
        parent = process.parent()
        return "spawn_main" in command and parent is not None and "SynthesizerServer" in " ".join(parent.cmdline())
    return False
