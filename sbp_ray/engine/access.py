"""Who may use the endpoint: bearer keys from a file or the environment, or nobody but this machine.

They are compared as digests in constant time, and appear in no answer, no log line, no metric and no Serve config:
those name the file or the variable alone. Others can look where they come from: whoever may read the file, and with the
variable every process of Ray on the node, which inherits its environment.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import os
import time
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from sbp_ray.errors import SbpError

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "SBP_RAY_API_KEYS"
MIN_KEY_CHARS = 16
_LOOK_EVERY_S = 1.0

# What proxies add to a request that they pass on, besides everything that begins with `x-forwarded-`.
_OF_PROXIES = (b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"true-client-ip", b"cf-connecting-ip", b"cf-ray")


class Keys:
    """The bearer keys that hold now."""

    def __init__(self, keys_file: str | None, environment: Mapping[str, str] = os.environ) -> None:
        """
        Raises:
            SbpError: the file cannot be read or holds no key, or a key is too short to be a secret.
        """
        self._file = Path(keys_file) if keys_file else None
        self._stamp: tuple[int, int] | None = None
        self._looked_at = time.monotonic()
        if self._file:
            self._digests = self._read_file(self._file)
        else:
            self._digests = _digests(environment.get(KEYS_VARIABLE, "").split(","), KEYS_VARIABLE)

    @property
    def are_needed(self) -> bool:
        return bool(self._digests)

    def admit(self, authorization: bytes) -> bool:
        """Whether the value of an Authorization header holds a key; in constant time."""
        self._look_again()
        scheme, _, key = authorization.partition(b" ")
        given = sha256(key.strip()).digest()
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them: no early end
        return any(matches) and scheme.lower() == b"bearer"

    def _look_again(self) -> None:
        """Take in a changed file. One that is gone, empty or wrong is said in the log, and the old keys hold."""
        if self._file is None or time.monotonic() - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = time.monotonic()
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            self._digests = self._read_file(self._file)
            logger.info(f"{self._file} has changed: its keys hold from now on")
        except SbpError as error:
            self._stamp = stamp  # said once for each state of the file
            logger.warning(f"{error}; until then the keys that were read before hold")

    def _read_file(self, file: Path) -> tuple[bytes, ...]:
        self._stamp = _stamp(file)
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            raise SbpError(f"service.keys_file={file}: cannot be read: name a text file with one key a line") from None
        digests = _digests([line for line in lines if not line.lstrip().startswith("#")], str(file))
        if not digests:
            raise SbpError(f"service.keys_file={file}: holds no key: write one a line, or remove the setting")
        return digests


def _stamp(file: Path) -> tuple[int, int]:
    """What changes when the file does; zeros where there is none."""
    try:
        status = file.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_size


def _digests(keys: list[str], origin: str) -> tuple[bytes, ...]:
    stripped = [key.strip() for key in keys if key.strip()]
    if any(len(key.split()) > 1 for key in stripped):
        raise SbpError(
            f"{origin}: a key has white space in it: write one key a line, and comments on lines of their own"
        )
    if any(len(key) < MIN_KEY_CHARS for key in stripped):
        raise SbpError(f"{origin}: a key has fewer than {MIN_KEY_CHARS} characters: `openssl rand -hex 32` makes one")
    return tuple(sha256(key.encode()).digest() for key in stripped)


def is_loopback(host: str | None) -> bool:
    """Whether an address, or `localhost`, cannot be reached from another machine."""
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_forwarded(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a proxy says that the request comes from somebody else: its own address then tells nothing."""
    return any(name.lower() in _OF_PROXIES or name.lower().startswith(b"x-forwarded-") for name, _ in headers)


def is_from_another_site(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a browser may have sent the request for a page of somebody else's.

    A page can make its own name resolve to this machine (DNS rebinding): the request then names that host.
    """
    values: dict[bytes, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.lower(), []).append(value.decode("latin-1").strip().lower())
    [host] = values.get(b"host", []) if len(values.get(b"host", [])) == 1 else [""]
    hostname = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return not is_loopback(hostname) or not {"cross-site", "same-site"}.isdisjoint(values.get(b"sec-fetch-site", []))


def check_door_of_serve(keys_file: str | None) -> None:
    """`check_door` for the address and the nodes of the Serve that runs here."""
    import ray
    from ray.serve.context import _get_global_client

    check_door(keys_file, _get_global_client().http_config.host, sum(node["Alive"] for node in ray.nodes()))


def check_door(
    keys_file: str | None, host: str | None, num_nodes: int, environment: Mapping[str, str] = os.environ
) -> None:
    """Say at the start who may come in. Without keys the endpoint is for this machine only.

    Raises:
        SbpError: it would be reachable from elsewhere; or there are other machines, so that the keys of the head's
            environment may be missing only on the node where this process runs.
    """
    if Keys(keys_file, environment).are_needed:
        logger.info(f"the endpoint on {host} asks for a bearer key")
        return
    if num_nodes > 1:
        raise SbpError(
            f"the cluster has {num_nodes} nodes, and on this one there is no key: set service.keys_file to a file that "
            f"all nodes can read, or {KEYS_VARIABLE} in the environment of `ray start` on each of them"
        )
    if not is_loopback(host):
        raise SbpError(
            f"http_options.host={host} is reachable from other machines, and there is no key: set service.keys_file, "
            f"or {KEYS_VARIABLE} in the environment of `ray start`, or bind to 127.0.0.1"
        )
    logger.warning(f"the endpoint on {host} has no key: it serves this machine only ({KEYS_VARIABLE} is not set)")
