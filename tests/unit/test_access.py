"""Who may use the endpoint."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from sbp_ray.engine import access
from sbp_ray.engine.access import KEYS_VARIABLE, Keys, check_door, is_loopback
from sbp_ray.engine.http_limits import Doorkeeper
from sbp_ray.errors import SbpError

A, B = "a" * 16, "b" * 16


def test_each_key_of_the_environment_opens_and_nothing_else_does() -> None:
    keys = Keys(None, {KEYS_VARIABLE: f"{A}, {B},"})
    assert keys.admit(f"Bearer {A}".encode())
    assert keys.admit(f"bearer  {B}".encode())
    for wrong in (b"", b"Bearer ", A.encode(), f"Basic {A}".encode(), f"Bearer {A}{B}".encode(), b"Bearer \xff"):
        assert not keys.admit(wrong)


def test_without_keys_none_is_needed() -> None:
    assert not Keys(None, {}).are_needed


def test_a_changed_file_is_taken_in_and_a_broken_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(access, "_LOOK_EVERY_S", 0)
    file = tmp_path / "keys"
    file.write_text(A)
    keys = Keys(str(file))
    file.write_text(f"{A}\n{B}\n")
    assert keys.admit(f"Bearer {B}".encode())
    with caplog.at_level("INFO"):
        file.unlink()
        for _ in range(2):
            assert keys.admit(f"Bearer {B}".encode())
        file.write_text("\n")
        for _ in range(2):
            assert keys.admit(f"Bearer {B}".encode())
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert ["cannot be read" in warnings[0], "holds no key" in warnings[1], len(warnings)] == [True, True, 2]


@pytest.mark.parametrize("text", [f"# of a client\n\n  {A}\r\n#{B}\n", f"\ufeff{A}\n", f"\t# {B}\n{A}"])
def test_comments_blanks_and_a_byte_order_mark_are_no_part_of_a_key(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(text.encode())
    keys = Keys(str(file))
    assert keys.admit(f"Bearer {A}".encode())
    for wrong in (f"#{B}", f"# {B}", B, "# of a client", ""):
        assert not keys.admit(f"Bearer {wrong}".encode())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("\n \n", "holds no key"),
        ("short", "fewer than"),
        (f"{A}  # of a client", "white space"),
    ],
)
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SbpError, match=said) as error:
        Keys(str(file))
    assert text is None or not text.strip() or text not in str(error.value)  # the key itself is not repeated


ONE_KEY = {KEYS_VARIABLE: A}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.com", None])
def test_without_a_key_only_loopback_may_be_bound(host: str | None) -> None:
    with pytest.raises(SbpError, match="there is no key"):
        check_door(None, host, 1, {})
    check_door(None, host, 1, ONE_KEY)


def test_who_may_come_in_is_said_at_the_start_and_no_key_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(access.logger, level, said.append)
    check_door(None, "127.0.0.1", 1, {})
    check_door(None, "127.0.0.1", 1, ONE_KEY)
    assert said[0].startswith("the endpoint on 127.0.0.1 has no key: it serves this machine only")
    assert said[1] == "the endpoint on 127.0.0.1 asks for a bearer key"


def test_where_there_are_other_nodes_a_key_is_wanted_on_loopback_too() -> None:
    """The head may have one in its environment, and the node that runs the ingress none."""
    with pytest.raises(SbpError, match=r"2 nodes, and on this one there is no key: .*keys_file"):
        check_door(None, "127.0.0.1", 2, {})
    check_door(None, "127.0.0.1", 2, ONE_KEY)


def entered(headers: list[tuple[bytes, bytes]], keys: str = "", client: str = "127.0.0.1") -> int:
    """The status that a request gets."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    doorkeeper = Doorkeeper(app, None)
    doorkeeper._keys = Keys(None, {KEYS_VARIABLE: keys})
    scope = {"type": "http", "path": "/v1/models", "headers": headers, "client": (client, 5)}
    asyncio.run(doorkeeper(scope, None, send))  # type: ignore[arg-type]
    return statuses[0]


LOCAL = (b"host", b"127.0.0.1:8000")


@pytest.mark.parametrize("host", [b"localhost", b"LOCALHOST:8000", b"127.0.0.1", b"[::1]:8000", b"127.9.9.9:1"])
def test_without_keys_a_loopback_name_is_served(host: bytes) -> None:
    assert entered([(b"host", host)]) == 200


@pytest.mark.parametrize("host", [b"evil.example", b"evil.example:8000", b"localhost.evil.example", b"10.0.0.5", b"", b"[", b"localhost@evil"])  # fmt: skip  # noqa: E501
def test_a_page_that_rebinds_its_name_to_this_machine_is_refused(host: bytes) -> None:
    assert entered([(b"host", host)]) == 403
    assert entered([(b"host", host), (b"authorization", f"Bearer {A}".encode())], keys=A) == 200


def test_without_keys_a_request_of_another_sites_page_is_refused() -> None:
    for site in (b"cross-site", b"same-site", b"Cross-Site"):
        assert entered([LOCAL, (b"Sec-Fetch-Site", site)]) == 403
    for site in (b"none", b"same-origin"):
        assert entered([LOCAL, (b"Sec-Fetch-Site", site)]) == 200
    assert entered([]) == 403
    assert entered([LOCAL, LOCAL]) == 403


def test_without_keys_this_machine_enters_and_what_a_proxy_on_it_passes_on_does_not() -> None:
    assert entered([LOCAL]) == 200
    assert entered([LOCAL], client="10.0.0.5") == 401
    of_proxies = (
        b"Forwarded x-forwarded-for X-Forwarded-Host X-Forwarded-Proto x-real-ip Via CF-Connecting-IP True-Client-IP"
    )
    for name in of_proxies.split():
        assert entered([LOCAL, (name, b"127.0.0.1")]) == 401


def test_with_keys_a_proxy_may_pass_them_on() -> None:
    headers = [(b"x-forwarded-for", b"203.0.113.5"), (b"authorization", f"Bearer {A}".encode())]
    assert entered(headers, keys=A) == 200
    assert entered(headers[:1], keys=A) == 401


def test_loopback_is_told_by_its_address() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.3.2.1", "::1", "localhost"]))
