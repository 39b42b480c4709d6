"""What the environment of a machine does to Ray, put right before Ray is imported: temporary folders, proxies, and what
Ray says on the terminal."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import tempfile
from pathlib import Path

from sbp_ray.errors import SbpError

logger = logging.getLogger(__name__)

_LONGEST_FOLDER = 38
"""Unix sockets have room for 107 characters, and Ray puts 68 behind the temporary folder."""
_SHORT_PLACES = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108  only a link goes there, whose owner is checked
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_CHATTER = (
    r"has constructor arguments in the object store and max_restarts",
    r"RayDeprecationWarning: `ExecutionOptions\.exclude_resources`",
    r"^\s*self\.exclude_resources = exclude_resources$",
    r"Warning: NUMA binding: ",
    r"Loading safetensors checkpoint shards: ",
    r"-- (Using executor class: |Started vLLM engine\.)",
    r"^Task ServeController\.graceful_shutdown failed\. There are infinite retries remaining",
    # Ray Train's watcher, when the dashboard takes more than ten seconds to answer; it asks again.
    r"^Failed to query Ray Train Controller actor state\. State API may be temporarily unavailable\. Continuing",
)
"""Lines of workers that every normal run has, and that nobody can do anything about."""


# What is said


def drop_chatter() -> None:
    """Have Ray leave out lines of workers that every normal run has. What it knows of errors stays."""
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "|".join(_CHATTER))


# Temporary folders


def shorten_temporary_folder() -> None:
    """Where TMPDIR (or Ray's own RAY_TMPDIR) is too long for sockets, or has blanks or letters that are not ASCII, name
    it by a short link. Files stay where the user wants them.

    The link's name follows from the folder, so that there is one for each however many jobs use it, and it stays.

    Raises:
        SbpError: there is no place for a link.
    """
    for name in ("TMPDIR", "RAY_TMPDIR"):
        folder = os.environ.get(name, "")
        if len(folder) > _LONGEST_FOLDER or not re.fullmatch(r"[A-Za-z0-9._/-]*", folder):
            os.environ[name] = _link_to(name, folder)
            if name == "TMPDIR":
                tempfile.tempdir = None  # it is chosen anew: engines have sockets too


def _link_to(name: str, folder: str) -> str:
    target = Path(folder).resolve()
    for place in _SHORT_PLACES:
        link = Path(place) / f"sbp-{hashlib.sha256(os.fsencode(target)).hexdigest()[:12]}-{os.getuid()}"
        try:
            link.symlink_to(target)
        except FileExistsError:
            if link.lstat().st_uid != os.getuid() or link.resolve() != target:
                continue
        except OSError:
            continue
        logger.info(f"temporary files | {folder} is known to Ray as {link}")
        return str(link)
    raise SbpError(
        f"{name}={folder!r} cannot hold Ray's sockets: set it to a folder of at most {_LONGEST_FOLDER} ASCII "
        "characters without blanks"
    )


# Proxies


def go_around_proxies(address: str | None) -> dict[str, str]:
    """Where the environment names proxies, keep what Ray's parts say to one another off them.

    Ray Train's watchers ask the dashboard by HTTP whether their run is alive, and a proxy does not know it.

    Args:
        address: of the control store that is joined; none for a Ray of our own.

    Returns:
        What workers need in their environment too.
    """
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return {}
    hosts = ["127.0.0.1", "localhost", "::1", socket.gethostname(), *_own_addresses()]
    if address and ":" in address:
        host = address.rpartition("://")[2].rpartition(":")[0]
        hosts += [host, *_addresses_of(host)]
    spared = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    value = ",".join(dict.fromkeys(part.strip() for part in [*spared, *hosts] if part.strip()))
    found = {"no_proxy": value, "NO_PROXY": value}
    os.environ.update(found)
    return found


def _own_addresses() -> list[str]:
    """As Ray names this node."""
    import ray

    return [ray.util.get_node_ip_address()]


def _addresses_of(host: str) -> list[str]:
    try:
        return sorted({str(info[4][0]) for info in socket.getaddrinfo(host, None)})
    except socket.gaierror:
        return []
