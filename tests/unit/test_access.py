"""Who may use the endpoint."""

from pathlib import Path

import pytest

from sbp_ray.engine import access
from sbp_ray.engine.access import KEYS_VARIABLE, Keys, is_loopback, refuse_open_door
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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "_LOOK_EVERY_S", 0)
    file = tmp_path / "keys"
    file.write_text(A)
    keys = Keys(str(file))
    file.write_text(f"{A}\n{B}\n")
    assert keys.admit(f"Bearer {B}".encode())
    file.unlink()
    assert keys.admit(f"Bearer {B}".encode())
    file.write_text("\n")
    assert keys.admit(f"Bearer {B}".encode())


@pytest.mark.parametrize(
    ("text", "said"), [(None, "cannot be read"), ("\n \n", "holds no key"), ("short", "fewer than")]
)
def test_a_file_without_usable_keys_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    file = tmp_path / "keys"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SbpError, match=said) as error:
        Keys(str(file))
    assert text is None or not text.strip() or text not in str(error.value)  # the key itself is not repeated


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "example.com", None])
def test_without_a_key_only_loopback_may_be_bound(host: str | None) -> None:
    with pytest.raises(SbpError, match="there is no key"):
        refuse_open_door(Keys(None, {}), host)
    refuse_open_door(Keys(None, {KEYS_VARIABLE: A}), host)


def test_loopback_is_told_by_its_address() -> None:
    assert all(map(is_loopback, ["127.0.0.1", "127.3.2.1", "::1", "localhost"]))
