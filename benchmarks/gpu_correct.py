"""Cases of `gpu.py` that assert: facts of the machine, and that a GPU's numbers are those of float64 or of a CPU.

Each is a function of a `Setting` that returns what it measured, and raises `AssertionError` where a bound is not met.
Limits for bfloat16 are some times what rounding to 8 bits explains; those for float32 what sums in another order do.

Legend: B rows, T tokens, H query heads, K key and value heads, D head width, S supervised tokens, V vocabulary.
"""

from __future__ import annotations

import importlib
import inspect
import math
import platform
import time
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from gpu_setting import Setting, group, make_batches, make_plan, relative, synchronize
from torch.distributed.tensor import DTensor
from torch.nn.attention.varlen import varlen_attn

from sbp_ray import attention
from sbp_ray.config import Dtype
from sbp_ray.model import build_model
from sbp_ray.nll import nll_of_each
from sbp_ray.training.build import build_sharded_model
from sbp_ray.training.estimate import find_peak_flops
from sbp_ray.training.loss import SupervisedLanguageModel, sum_cross_entropy

Numbers = dict[str, Any]
_IMPORTED = ("sbp_ray.training.build", "sbp_ray.training.step", "sbp_ray.scoring")


def facts(setting: Setting) -> Numbers:
    """Versions, and what the device does with the two things that all else is made of: products and copies."""
    found: Numbers = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "varlen_attn": list(inspect.signature(varlen_attn).parameters),
    }
    for name in _IMPORTED:
        importlib.import_module(name)
    if setting.device.type == "cuda":
        properties = torch.cuda.get_device_properties(setting.device)
        found["gib"] = round(properties.total_memory / 2**30, 1)
        found["capability"] = f"{properties.major}.{properties.minor}"
    size = setting.pick(256, 8192)
    left, right = torch.ones(2, size, size, dtype=torch.bfloat16, device=setting.device)
    found["tflops"] = round(2 * size**3 / _fastest(setting, lambda: left @ right) / 1e12, 2)
    into = torch.empty_like(left)
    found["copy_tb_per_s"] = round(2 * left.nbytes / _fastest(setting, lambda: into.copy_(right)) / 1e12, 3)
    found["peak_tflops"] = (find_peak_flops(setting.device, "bfloat16") or math.nan) / 1e12
    return found


def _fastest(setting: Setting, work: Callable[[], Any]) -> float:
    spent = []
    for _ in range(setting.pick(2, 10)):
        start = time.perf_counter()
        work()
        synchronize(setting.device)
        spent.append(time.perf_counter() - start)
    return min(spent[1:])


def attends_within_documents(setting: Setting) -> Numbers:
    """Attention and its gradients beside float64, document by document, for lengths around the kernel's blocks: as a
    model is trained, and as an encoder embeds, which sees both ways and is told the longest document."""
    worst = {"forward": 0.0, "gradient": 0.0}
    lengths = setting.pick([1, 2, 15, 16, 17, 13], [1, 2, 127, 128, 129, 256, 1405])
    many = setting.pick([1] * 30 + [34], [3] * 299 + [1151])
    for head_dim in setting.pick((16,), (64, 128)):
        for parts in (lengths, [sum(lengths)], many):
            for is_causal in (True, False):
                found = _compare_attention(setting, parts, head_dim, is_causal)
                worst = {name: max(worst[name], value) for name, value in found.items()}
    assert worst["forward"] <= 1e-2, worst
    assert worst["gradient"] <= 2e-2, worst
    return worst


def _compare_attention(setting: Setting, parts: list[int], head_dim: int, is_causal: bool) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, sum(parts), head_dim) for heads in (6, 2, 2)]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).bfloat16() for shape in shapes]
    wanted_BTHD = torch.randn(1, sum(parts), 6, head_dim, generator=generator, dtype=torch.float64).bfloat16()
    bounds_N1 = torch.tensor([0, *np.cumsum(parts)], dtype=torch.int32)
    results = []
    for device, dtype in ((torch.device("cpu"), torch.float64), (setting.device, torch.bfloat16)):
        inputs = [tensor.to(device, dtype).requires_grad_() for tensor in given]
        if dtype == torch.float64:
            out = _attend_exactly(*inputs, parts, is_causal)
        else:
            told: dict[str, Any] = {"bounds_N1": bounds_N1.to(device), "scaling": head_dim**-0.5}
            told["longest"] = None if is_causal else max(parts)
            out, _ = attention._attend(SimpleNamespace(is_causal=is_causal), *inputs, None, **told)
        out.backward(wanted_BTHD.to(device, dtype))
        results.append((out, [tensor.grad for tensor in inputs]))
    (exact, exact_grads), (out, grads) = results
    gradient = max(relative(found, expected) for found, expected in zip(grads, exact_grads, strict=True))
    return {"forward": relative(out, exact), "gradient": gradient}


def _attend_exactly(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, parts: list[int], is_causal: bool
) -> torch.Tensor:
    mixed = []
    times = query.shape[1] // key.shape[1]
    columns = (tensor.split(parts, dim=2) for tensor in (query, key, value))
    for q, k, v in zip(*columns, strict=True):
        k, v = (tensor.repeat_interleave(times, dim=1) for tensor in (k, v))
        scores = q @ k.transpose(2, 3) * query.shape[3] ** -0.5
        hidden = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
        mixed.append(scores.masked_fill(hidden & is_causal, -math.inf).softmax(-1) @ v)
    return torch.cat(mixed, dim=2).transpose(1, 2)


def keeps_documents_apart(setting: Setting) -> Numbers:
    """All tokens of one document are changed: the states of the others stay equal to the bit."""
    plan = make_plan(setting, rows=2)
    with group(plan) as device:
        lm = build_model(plan.model, plan.vocab_size, plan.special, 0).to(device, torch.bfloat16)
        attention.attend_within_documents(lm)
        batch = make_batches(plan, 1)[0].to(device)
        start, end = batch.documents.bounds_N1[1:3].tolist()
        changed_BT = batch.input_ids_BT.clone()
        changed_BT.view(-1)[start:end] = (changed_BT.view(-1)[start:end] + 7) % plan.vocab_size
        states = [
            lm.model(
                input_ids=ids_BT,
                position_ids=batch.documents.positions_BT,
                attention_mask=None,
                use_cache=False,
                bounds_N1=batch.documents.bounds_N1,
            ).last_hidden_state.flatten(0, 1)
            for ids_BT in (batch.input_ids_BT, changed_BT)
        ]
        others = torch.ones(states[0].shape[0], dtype=torch.bool, device=device)
        others[start:end] = False
        assert torch.equal(states[0][others], states[1][others])
        assert not torch.equal(states[0][~others], states[1][~others])
    return {"documents": len(batch.documents.bounds_N1) - 1}


def packs_as_alone(setting: Setting) -> Numbers:
    """Each document of a packed row costs what it costs alone, in the plain model of transformers."""
    found = {}
    for dtype, limit in (("float32", 1e-4), ("bfloat16", 5e-3)):
        plan = make_plan(setting, rows=1)
        with group(plan) as device, torch.inference_mode():
            lm = build_model(plan.model, plan.vocab_size, plan.special, 0).to(device, getattr(torch, dtype))
            batch = make_batches(plan, 1)[0]
            alone = []
            bounds = batch.documents.bounds_N1.tolist()
            padded = setting.seq_len // 16
            for start, end in pairwise(bounds[:-1]):  # the last is padding
                ids_1T = batch.input_ids_BT[:, start:end].to(device)
                states = lm.model(input_ids=ids_1T, use_cache=False).last_hidden_state[0, :-1]
                alone += nll_of_each(states, lm.lm_head.weight, ids_1T[0, 1:]).tolist()
            attention.attend_within_documents(lm)
            placed = batch.to(device)
            packed = SupervisedLanguageModel(lm)(placed.input_ids_BT, placed.targets, placed.documents).tolist()
        assert bounds[-2] == setting.seq_len - padded
        assert len(packed) == len(alone)
        found[dtype] = float(np.abs(np.subtract(packed, alone)).mean())
        assert found[dtype] <= limit, found
    return found


def sums_cross_entropy(setting: Setting) -> Numbers:
    """The loss and its gradients beside float64, over borders of chunks, with z-loss, compiled as in a training."""
    num_tokens, width, chunk = setting.pick((50, 32, 16), (1000, 1024, 256))
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_tokens, width, generator=generator)
    weight = torch.randn(setting.vocab_size, width, generator=generator) / width**0.5
    target_S = torch.randint(setting.vocab_size, (num_tokens,), generator=generator)
    worst: Numbers = {}
    for dtype, limit in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        for z_loss in (0.0, 1e-3):
            given = [tensor.to(dtype) for tensor in (hidden, weight)]
            exact = [tensor.double().requires_grad_() for tensor in given]
            logits = exact[0] @ exact[1].T
            nll = torch.nn.functional.cross_entropy(logits, target_S, reduction="sum")
            total = nll + z_loss * logits.logsumexp(1).square().sum()
            expected = torch.autograd.grad(total, exact)
            ours = [tensor.to(setting.device).requires_grad_() for tensor in given]
            for is_compiled in {False, setting.device.type == "cuda"}:
                sums = sum_cross_entropy(*ours, target_S.to(setting.device), z_loss, chunk, is_compiled=is_compiled)
                found = torch.autograd.grad(sums[1], ours)
                off = [relative(sums[1], total), *map(relative, found, expected)]
                worst[f"{dtype}{', compiled' if is_compiled else ''}"] = max(off)
                assert max(off) <= limit, off
    return worst


def steps_as_a_cpu(setting: Setting) -> Numbers:
    """Loss and gradients of one step beside a CPU in float32: in float32 nearly equal, in bfloat16 of one direction."""
    shape = setting.shape.model_copy(update={"num_layers": 2})
    losses, gradients = {}, {}
    dtypes: dict[str, Dtype] = {"cpu": "float32", "float32": "float32", "bfloat16": "bfloat16"}
    for name, dtype in dtypes.items():
        plan = make_plan(setting, shape=shape, dtype=dtype, rows=1, on_cpu=name == "cpu")
        with group(plan) as device:
            batch = make_batches(plan, 1)[0].to(device)
            model = build_sharded_model(plan, device)
            sums = model(batch.input_ids_BT, batch.targets, batch.documents)
            (sums[1] / batch.num_supervised).backward()
            losses[name] = sums[0].item() / batch.num_supervised
            gradients[name] = torch.cat([_whole(p.grad).flatten().double().cpu() for p in model.parameters()])
    cosine = {name: float(torch.cosine_similarity(gradients[name], gradients["cpu"], dim=0)) for name in gradients}
    assert math.isclose(losses["float32"], losses["cpu"], rel_tol=1e-4), losses
    assert math.isclose(losses["bfloat16"], losses["cpu"], rel_tol=5e-3), losses
    assert relative(gradients["float32"], gradients["cpu"]) <= 1e-3
    assert cosine["bfloat16"] >= 0.99, cosine
    return {"losses": losses, "cosine": cosine}


def _whole(tensor: torch.Tensor | None) -> torch.Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


FACTS: dict[str, Callable[[Setting], Numbers]] = {"facts": facts}
CASES: dict[str, Callable[[Setting], Numbers]] = {
    case.__name__: case
    for case in (
        attends_within_documents,
        keeps_documents_apart,
        packs_as_alone,
        sums_cross_entropy,
        steps_as_a_cpu,
    )
}
