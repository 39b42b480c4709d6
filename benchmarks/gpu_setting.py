"""What the cases of `gpu.py` share: the device and its sizes, plans, batches, and a few steps of training.

Nothing here, and nothing that is imported here, needs Ray, vLLM, pyarrow or a network.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from sbp_ray.config import Dtype, ModelConfig, PretrainConfig, TrainingResources
from sbp_ray.mixing import Mixture, Source
from sbp_ray.training.batches import PADDING, Batch, Row, make_batch
from sbp_ray.training.build import build_sharded_model
from sbp_ray.training.loss import SupervisedLanguageModel
from sbp_ray.training.optim import build_optimizer
from sbp_ray.training.sharding import process_group
from sbp_ray.training.step import StepResult, update
from sbp_ray.training.training_plan import TrainingPlan

TINY = ModelConfig(
    num_layers=2, hidden_size=96, num_heads=6, num_kv_heads=2, head_dim=16, ffn_size=128, tie_embeddings=False
)
TENTH_B = ModelConfig(depth=12)
SIZES = {
    "0.1 B": TENTH_B,
    "0.3 B": ModelConfig(depth=16, num_layers=24),
    "1 B": ModelConfig(depth=27),
    "3 B": ModelConfig(
        num_layers=26, hidden_size=3072, num_heads=24, num_kv_heads=8, head_dim=128, ffn_size=8064, tie_embeddings=False
    ),
}
_MEAN_DOCUMENT = 828
"""Tokens, of the paper's corpus; lengths are log-normal."""
_NOTHING = Source("nothing", ())


class Skip(Exception):  # noqa: N818  no error: the case cannot be had here
    """Why a case cannot run here."""


@dataclass(frozen=True)
class Setting:
    """Where the cases run, and how large."""

    device: torch.device
    is_tiny: bool
    """So small that a CPU does it in seconds: for testing the cases themselves."""

    @property
    def shape(self) -> ModelConfig:
        """Of the models whose numbers are compared."""
        return TINY if self.is_tiny else TENTH_B

    @property
    def seq_len(self) -> int:
        """Tokens of a row."""
        return 64 if self.is_tiny else 2048

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return 320 if self.is_tiny else 49_152

    @property
    def resources(self) -> TrainingResources:
        """Of a training that takes the device."""
        return TrainingResources(num_gpus=float(self.device.type == "cuda"))

    def pick(self, tiny: Any, whole: Any) -> Any:
        """The first in a test of the kit, the second where it counts."""
        return tiny if self.is_tiny else whole


def make_setting(device: str) -> Setting:
    """
    Raises:
        Skip: there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise Skip("torch finds no GPU")
    return Setting(torch.device("cuda", 0) if device == "cuda" else torch.device("cpu"), device == "cpu")


def make_plan(
    setting: Setting,
    *,
    shape: ModelConfig | None = None,
    dtype: Dtype = "bfloat16",
    steps: int = 20,
    rows: int = 2,
    micro_batches: int = 1,
    seq_len: int | None = None,
    on_cpu: bool = False,
    float8: bool = False,
    **resources: Any,
) -> TrainingPlan:
    """A run from fresh weights; `rows` in a micro-batch."""
    own = TrainingResources(num_gpus=0 if on_cpu else setting.resources.num_gpus, micro_batch_rows=rows, **resources)
    seq_len = seq_len or setting.seq_len
    config = PretrainConfig(
        seq_len=seq_len,
        batch_rows=rows * micro_batches,
        total_tokens=rows * micro_batches * seq_len * steps,
        peak_lr=1e-3,
        warmup_share=0.1,
        dtype=dtype,
        float8=float8,
        checkpoint="last",
        resources=own,
    )
    order = Mixture(Source("random", (rows,)), None, config.batch_rows * steps, 0, 0)
    nowhere: Any = None  # no case writes an artifact
    return TrainingPlan(
        "kit",
        config,
        order,
        steps,
        nowhere,
        _NOTHING,
        _NOTHING,
        nowhere,
        setting.vocab_size,
        (0, 1, 2),
        shape or setting.shape,
    )


def make_batches(plan: TrainingPlan, number: int, *, seed: int = 0) -> list[Batch]:
    """Full rows of documents as long as the paper's (or a quarter of a row), whose next token can be learnt."""
    config, rng = plan.config, np.random.default_rng(seed)
    return [
        draw_batch(rng, config.resources.micro_batch_rows, config.seq_len, plan.vocab_size, config.resources)
        for _ in range(number)
    ]


def draw_batch(
    rng: np.random.Generator, rows: int, seq_len: int, vocab_size: int, resources: TrainingResources
) -> Batch:
    """Each token is its predecessor and a little more; a last document stays padding in the first row."""
    mean = min(_MEAN_DOCUMENT, seq_len // 4)
    drawn = []
    for row in range(rows):
        ends = np.cumsum(np.clip(rng.lognormal(np.log(mean) - 0.5, 1.0, seq_len), 4, seq_len)).astype(int)
        document_ids_T = np.searchsorted(ends, np.arange(seq_len), side="right")
        steps_T = rng.integers(1, 4, seq_len)
        input_ids_T = 3 + np.cumsum(steps_T) % (vocab_size - 3)
        mask_T = np.diff(document_ids_T, prepend=-1) == 0  # not the first token of a document
        if row == 0:
            document_ids_T[-seq_len // 16 :] = PADDING
            mask_T[-seq_len // 16 :] = False
        drawn.append(Row(input_ids_T, mask_T, document_ids_T))
    return make_batch([None] * rows, drawn, is_pinned=resources.num_gpus > 0)


class Trained(NamedTuple):
    """What a few steps came to."""

    losses: list[float]
    last: StepResult
    seconds: list[float]
    model: SupervisedLanguageModel
    optimizer: torch.optim.Optimizer


@contextmanager
def group(plan: TrainingPlan) -> Iterator[torch.device]:
    """The process group of one rank that FSDP wants; what was on the device before is gone from it."""
    torch.compiler.reset()
    gc.collect()  # FSDP's modules are cycles
    is_on_gpu = plan.config.resources.num_gpus > 0
    if is_on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with process_group(plan.config.resources):
        yield torch.device("cuda", 0) if is_on_gpu else torch.device("cpu")


def train(
    plan: TrainingPlan,
    device: torch.device,
    batches: list[Batch],
    *,
    first_step: int = 1,
    model: SupervisedLanguageModel | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    on_step: Callable[[], None] | None = None,
) -> Trained:
    """Steps of as many micro-batches as the plan has, until the batches are used up. Inside `group`."""
    model = model or build_sharded_model(plan, device)
    optimizer = optimizer or build_optimizer(model, plan.config)
    size = plan.config.batch_rows // plan.config.resources.micro_batch_rows
    losses, seconds = [], []
    for step, start in enumerate(range(0, len(batches), size), start=first_step):
        began = time.perf_counter()
        result = update(plan, model, optimizer, batches[start : start + size], step, device)
        synchronize(device)
        seconds.append(time.perf_counter() - began)
        losses.append(result.loss_nats)
        if on_step:
            on_step()
    return Trained(losses, result, seconds, model, optimizer)


def synchronize(device: torch.device) -> None:
    """Wait for all that was asked of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The length of the difference, by that of the expected."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))
