"""Which attention a GPU computes with."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.attention import current_flash_attention_impl, restore_flash_attention_impl

from sbp_ray.training import devices
from sbp_ray.training.devices import choose_kernel

PACKAGE = """
from torch.library import Library

library = Library("flash_attn_3", "DEF")
library.define("fwd(Tensor q) -> Tensor")
library.define("bwd(Tensor q) -> Tensor")
"""


@pytest.fixture(autouse=True)
def first_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(devices.dist, "get_rank", lambda: 0)
    yield
    sys.modules.pop("flash_attn_interface", None)
    restore_flash_attention_impl(_raise_warn=False)


@pytest.mark.parametrize(
    ("major", "is_installed", "name"),
    [(9, True, "3"), (9, False, "2, of PyTorch"), (8, True, "2, of PyTorch"), (10, True, "2, of PyTorch")],
)
def test_only_hopper_takes_the_third_flash_attention_and_only_where_it_is_installed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    major: int,
    is_installed: bool,
    name: str,
) -> None:
    if is_installed:
        (tmp_path / "flash_attn_interface.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
    monkeypatch.setattr(devices.logger, "propagate", True)
    with caplog.at_level(logging.INFO, devices.logger.name):
        choose_kernel(torch.device("cuda"))
    assert caplog.messages == [f"attention in bfloat16 | FlashAttention-{name}"]
    assert current_flash_attention_impl() == ("FA3" if name == "3" else None)


def test_a_cpu_has_no_choice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        choose_kernel(torch.device("cpu"))
    assert caplog.messages == []
