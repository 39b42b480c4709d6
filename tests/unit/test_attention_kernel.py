"""Which attention a GPU computes with, and in which type."""

import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.attention import current_flash_attention_impl, restore_flash_attention_impl

from sbp_ray import attention
from sbp_ray.artifacts import Artifact
from sbp_ray.text.tokenizer import load_tokenizer, special_ids
from sbp_ray.training import build, devices
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


def test_in_float32_a_gpu_gets_as_many_heads_of_keys_as_of_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory-efficient kernel takes no grouped ones; shapes alone, on a device that computes nothing."""
    asked = []

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **how: Any) -> torch.Tensor:
        asked.append((query.shape, key.shape, value.shape, how["enable_gqa"]))
        return query

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    query, key = (torch.empty(6, heads, 8, device="meta") for heads in (4, 2))
    bounds = torch.tensor([0, 2, 6])
    mixed = attention._attend_one_by_one(query, key, key, bounds, scaling=1.0, is_causal=True)
    assert mixed.shape == query.shape
    assert asked == [((1, 4, length, 8),) * 3 + (False,) for length in (2, 4)]


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


def test_a_teacher_in_bfloat16_knows_its_positions_as_exactly_as_it_was_trained(tiny_synthesizer: Artifact) -> None:
    """16 bits of a frequency are a whole turn off after some hundred positions."""
    folder = tiny_synthesizer.path("model")
    tokenizer = load_tokenizer(folder)
    settings = SimpleNamespace(seed=0, settled_dtype="bfloat16")
    plan = SimpleNamespace(vocab_size=len(tokenizer), special=special_ids(tokenizer), config=settings)
    teacher = build._load_teacher(folder, plan, torch.device("cpu"))
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.bfloat16}
    frequencies = [buffer.dtype for name, buffer in teacher.named_buffers() if name.endswith("inv_freq")]
    assert frequencies and set(frequencies) == {torch.float32}
