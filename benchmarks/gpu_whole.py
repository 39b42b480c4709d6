"""Cases of `gpu.py` that assert of whole trainings and models: compiled, resumed, exported, scored, embedded, searched.

Each is a function of a `Setting` that returns what it measured, and raises `AssertionError` where a bound is not met.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from gpu_setting import SIZES, Setting, Skip, group, make_batches, make_plan, train
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3Model

from sbp_ray.agreement import TOLERANCE, summarize
from sbp_ray.model import build_model
from sbp_ray.scoring import load_float32, sum_nll
from sbp_ray.text.pair_format import Example
from sbp_ray.training.build import build_sharded_model
from sbp_ray.training.estimate import estimate_run
from sbp_ray.training.optim import build_optimizer

Numbers = dict[str, Any]


def compiles_to_the_same(setting: Setting) -> Numbers:
    """Twenty steps, compiled and with layers computed again, have the losses of twenty plain ones."""
    steps = setting.pick(3, 20)
    kinds = [{}] + [{"compile": True, "activation_checkpointing": kind} for kind in ("none", "selective", "full")]
    losses = {}
    for kind in kinds if setting.device.type == "cuda" else [{}, *({**kind, "compile": False} for kind in kinds[2:])]:
        plan = make_plan(setting, steps=steps, **kind)
        with group(plan) as device:
            losses[str(kind)] = train(plan, device, make_batches(plan, steps)).losses
    plain, *others = losses.values()
    apart = max(float(np.abs(np.subtract(other, plain)).max()) for other in others)
    assert plain[-1] < plain[0], "nothing was learnt"
    assert apart <= 2e-2, losses
    return {"apart_nats": apart, "first": plain[0], "last": plain[-1]}


def compiles_once(setting: Setting) -> Numbers:
    """Ten batches of different numbers of documents are one graph forward and one backward, without a break."""
    if setting.device.type != "cuda":
        raise Skip("on a CPU attention stays out of the graph")
    from torch._dynamo.utils import counters

    counters.clear()
    plan = make_plan(setting, steps=10, compile=True)
    with group(plan) as device:
        train(plan, device, make_batches(plan, 10))
    found = {"breaks": sum(counters["graph_break"].values()), "graphs": counters["stats"]["unique_graphs"]}
    assert found["breaks"] == 0, counters["graph_break"]
    assert found["graphs"] <= 3, found  # the layers', and the loss' of a chunk and of its rest
    return found


def resumes_where_it_was(setting: Setting) -> Numbers:
    """Five steps and five more from their state are ten: to the bit where the backward pass is deterministic."""
    with _deterministic():
        plan = make_plan(setting, steps=10)
        with group(plan) as device:
            whole = train(plan, device, make_batches(plan, 10))
        with group(plan) as device:
            half = train(plan, device, make_batches(plan, 10)[:5])
            state = [_copied(part) for part in get_state_dict(half.model, half.optimizer)]
        with group(plan) as device:
            model = build_sharded_model(plan, device)
            optimizer = build_optimizer(model, plan.config)
            set_state_dict(model, optimizer, model_state_dict=state[0], optim_state_dict=state[1])
            rest = train(plan, device, make_batches(plan, 10)[5:], first_step=6, model=model, optimizer=optimizer)
    resumed = half.losses + rest.losses
    assert resumed == whole.losses, (resumed, whole.losses)
    return {"last_nats": resumed[-1]}


@contextmanager
def _deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _copied(state: Any) -> Any:
    return torch.utils._pytree.tree_map(lambda part: part.clone() if isinstance(part, torch.Tensor) else part, state)


def exports_what_it_trained(setting: Setting) -> Numbers:
    """transformers gives the exported weights the likelihoods of the trained model; faults that are planted show."""
    sizes = setting.pick({"tiny": None}, {"0.1 B": SIZES["0.1 B"], "1 B": SIZES["1 B"]})
    return {name: _compare_export(setting, shape) for name, shape in sizes.items()}


def _compare_export(setting: Setting, shape: Any) -> Numbers:
    steps = setting.pick(5, 30)
    plan = make_plan(setting, shape=shape, steps=steps, rows=1)
    with group(plan) as device, tempfile.TemporaryDirectory() as folder:
        model = train(plan, device, make_batches(plan, steps)).model.eval()
        batch = make_batches(plan, 1, seed=1)[0]
        placed = batch.to(device)
        with torch.no_grad():
            ours = model(placed.input_ids_BT, placed.targets, placed.documents).tolist()
        lm = build_model(plan.model, plan.vocab_size, plan.special, 0)
        weights = {name.removeprefix("lm."): _whole(tensor).cpu() for name, tensor in model.state_dict().items()}
        lm.load_state_dict(weights)
        lm.save_pretrained(folder)
        del model
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
        found = _differences(theirs, batch, ours)
        good, limit = summarize(found), TOLERANCE["bfloat16"]
        assert good.mean <= limit.mean, good
        assert good.high <= limit.high, good
        measured: Numbers = {"mean": good.mean, "high": good.high, "max": max(found)}
        for name, plant in {"heads": _swap_heads, "rotation": _halve_theta}.items():
            broken = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(device).eval()
            plant(broken)
            bad = summarize(_differences(broken, batch, ours))
            measured[f"{name}_mean"] = bad.mean
            is_told = bad.mean > limit.mean or bad.high > limit.high
            assert is_told or setting.is_tiny, f"planted and not told: {name} {bad}"
    return measured


def _differences(model: Any, batch: Any, ours: list[float]) -> list[float]:
    found = []
    bounds = batch.documents.bounds_N1.tolist()
    with torch.inference_mode():
        for start, end in pairwise(bounds[:-1]):  # the last is padding
            ids_1T = batch.input_ids_BT[:, start:end].to(model.device)
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, :-1].float()
            found += cross_entropy(logits_TV, ids_1T[0, 1:], reduction="none").tolist()
    return np.abs(np.subtract(found, ours)).tolist()


def _swap_heads(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    width = attention.head_dim
    with torch.no_grad():
        rows = attention.q_proj.weight.clone()
        attention.q_proj.weight[:width], attention.q_proj.weight[-width:] = rows[-width:], rows[:width]


def _halve_theta(model: Any) -> None:
    model.model.rotary_emb.inv_freq.mul_(2)


def _whole(tensor: Any) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def scores_as_a_cpu(setting: Setting) -> Numbers:
    """Likelihoods in float32 beside a CPU's, and what a large batch of the 3 B shape takes."""
    rng = np.random.default_rng(0)
    shape = setting.shape.model_copy(update={"num_layers": 2})
    lengths = setting.pick([5, 17, 33], [50, 500, 1500])
    examples = [Example(rng.integers(3, 300, length).astype(np.int32), 1) for length in lengths]
    with tempfile.TemporaryDirectory() as folder:
        build_model(shape, setting.vocab_size, (0, 1, 2), 0).save_pretrained(folder)
        cpu = sum_nll(load_float32(folder, "cpu"), examples, batch_tokens=4096)
        ours = sum_nll(load_float32(folder, setting.device.type), examples, batch_tokens=4096)
        assert np.allclose(ours, cpu, rtol=1e-4), (ours, cpu)
        found: Numbers = {"relative": float(np.abs(ours / cpu - 1).max())}
        if setting.device.type == "cuda":
            found["peak_gib"] = _score_large(setting, folder)
    return found


def _score_large(setting: Setting, folder: str) -> float:
    """16 rows of 4096 tokens under 24 heads: the scores alone would be 26 GB."""
    shape = SIZES["3 B"].model_copy(update={"num_layers": 1})
    build_model(shape, setting.vocab_size, (0, 1, 2), 0).save_pretrained(folder)
    model = load_float32(folder, "cuda")
    torch.cuda.reset_peak_memory_stats()
    rng = np.random.default_rng(0)
    examples = [Example(rng.integers(3, 300, 4096).astype(np.int32), 4000) for _ in range(16)]
    sum_nll(model, examples, batch_tokens=16 * 4096)
    peak = torch.cuda.max_memory_allocated() / 2**30
    assert peak < 20, f"{peak:.1f} GiB: all scores were kept"
    return peak


def embeds_as_a_cpu(setting: Setting) -> Numbers:
    """The embedder on the device beside itself on a CPU in float32: a Qwen3 of random weights, and a byte tokenizer."""
    from sbp_ray.config import EmbedConfig
    from sbp_ray.embedder import Embedder
    from sbp_ray.text.tokenizer import train_tokenizer

    texts = [f"{word} " * number for number, word in enumerate(("a few words", "and others", "more of them"), start=3)]
    tokenizer = train_tokenizer(texts, 300)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen3Config(vocab_size=320, num_key_value_heads=2, head_dim=16, pad_token_id=0, **shape)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        Qwen3Model(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        vectors = [
            torch.from_numpy(
                Embedder(EmbedConfig(model=folder, max_tokens=64, dtype=dtype, resources={"num_gpus": num_gpus}))(texts)  # type: ignore[arg-type]
            )
            for dtype, num_gpus in (("float32", 0), ("auto", float(setting.device.type == "cuda")))
        ]
    cosine = float(torch.cosine_similarity(*vectors).min())
    assert cosine >= 0.99, cosine
    return {"cosine": cosine}


def finds_the_same_neighbours(setting: Setting) -> Numbers:
    """The search of a group on the device beside a CPU's: the same lists; and its recall."""
    try:
        from sbp_ray.neighbors.group import Control, Effort, search_group
    except ImportError as error:
        raise Skip(f"no {error.name} here") from None
    from sbp_ray.neighbors.quantize import Quantizer, encode

    num, dim, k = setting.pick((600, 24, 5), (50_000, 384, 20))
    rng = np.random.default_rng(0)
    centers_CD = rng.standard_normal((num // 50, dim))
    vectors_ND = centers_CD[rng.integers(len(centers_CD), size=num)] + 0.5 * rng.standard_normal((num, dim))
    unit_ND = (vectors_ND / np.linalg.norm(vectors_ND, axis=1, keepdims=True)).astype(np.float32)
    encoded_ND = encode(unit_ND)
    queries = rng.choice(num, 50, replace=False)
    cosine_QN = torch.from_numpy(unit_ND[queries]) @ torch.from_numpy(unit_ND).T
    cosine_QN[torch.arange(50), torch.from_numpy(queries)] = -1
    true_QK = cosine_QN.topk(k).indices.numpy()
    control = Control(np.repeat(queries, k), true_QK.ravel())
    arguments = encoded_ND, k, Quantizer(float(np.abs(unit_ND).max())), Effort(200, 16, 0.99), control
    cpu, ours = (search_group(*arguments, device=device) for device in ("cpu", setting.device.type))
    assert np.array_equal(cpu.order_N, ours.order_N)
    assert np.array_equal(cpu.row_NK, ours.row_NK)
    place_N = np.empty(num, np.int64)
    place_N[ours.order_N] = np.arange(num)
    shares = [
        np.isin(place_N[true_K], ours.row_NK[place_N[query]]).mean()
        for query, true_K in zip(queries, true_QK, strict=True)
    ]
    assert np.mean(shares) >= 0.9, np.mean(shares)
    return {"recall": float(np.mean(shares))}


def takes_the_memory_it_said(setting: Setting) -> Numbers:
    """Most memory of three steps beside the estimate, with gradients accumulated and without."""
    if setting.device.type != "cuda":
        raise Skip("a process' memory is not its tensors'")
    found: Numbers = {}
    for name in ("0.3 B", "1 B"):
        for micro_batches in (1, 4):
            shape = SIZES[name]
            plan = make_plan(setting, shape=shape, rows=2, micro_batches=micro_batches, seq_len=4096, steps=3)
            estimate = estimate_run(plan, plan.vocab_size, 1, None)
            with group(plan) as device:
                train(plan, device, make_batches(plan, 3 * micro_batches))
                peak = torch.cuda.max_memory_allocated() / 2**30
            said = estimate.state_gib + estimate.activations_gib
            found[f"{name} x {micro_batches}"] = {"peak_gib": round(peak, 2), "said_gib": round(said, 2)}
    apart = [abs(case["peak_gib"] / case["said_gib"] - 1) for case in found.values()]
    assert max(apart) <= 0.25, found
    return found


def trains_in_float8(setting: Setting) -> Numbers:
    """Losses of float8 beside those of bfloat16."""
    if setting.device.type != "cuda" or torch.cuda.get_device_capability() < (8, 9):
        raise Skip("no GPU with float8")
    try:
        import torchao  # noqa: F401
    except ImportError:
        raise Skip("no torchao here") from None
    losses = []
    for is_float8 in (False, True):
        plan = make_plan(setting, float8=is_float8, compile=True)
        with group(plan) as device:
            losses.append(train(plan, device, make_batches(plan, 20)).losses)
    apart = float(np.abs(np.subtract(*losses)).max())
    assert apart <= 5e-2, losses
    return {"apart_nats": apart}


CASES: dict[str, Callable[[Setting], Numbers]] = {
    case.__name__: case
    for case in (
        compiles_to_the_same,
        compiles_once,
        resumes_where_it_was,
        exports_what_it_trained,
        scores_as_a_cpu,
        embeds_as_a_cpu,
        finds_the_same_neighbours,
        takes_the_memory_it_said,
        trains_in_float8,
    )
}
