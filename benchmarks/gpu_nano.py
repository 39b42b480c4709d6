"""Cases of `gpu.py` that compare arms in small: text repeated beside text with synthetic documents.

    python benchmarks/gpu_nano.py --base runs/x/5_base_lm --lm runs/x/8_lm     # where the rows lie: writes nano.npz
    python benchmarks/gpu.py --piece nano --out DIR                            # on the GPU, beside that file

Both arms train equal models from scratch on equally many positions, the sbp arm a share of them on synthetic rows, and
are measured on the same held-out rows. Each case is one arm and one seed, and needs nothing of the others, so the piece
can be run as often as it takes; only numbers come back. Rows are read as they were packed, in the order of the joint
training's own arithmetic (`sbp_ray.mixing`).
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_setting import Setting, Skip, group, make_plan, train

from sbp_ray.config import ModelConfig
from sbp_ray.mixing import Address, Mixture, Source
from sbp_ray.model import num_parameters
from sbp_ray.training.batches import Batch, Row, make_batch, make_blank_row

SEEDS = 5
_FILE = Path(os.environ.get("SBP_NANO", "nano.npz"))
_DEPTH = int(os.environ.get("SBP_NANO_DEPTH", "8"))
_PASSES = 8
"""Over the real text, of the arm that repeats it."""
_SHARE = 0.375
_POSITIONS = 65_536
"""Of a step."""
Arrays = Mapping[str, Any]


def compare(setting: Setting, arm: str, seed: int) -> dict[str, Any]:
    """Held-out loss of one arm with one seed, along the training."""
    arrays = _invented(setting) if setting.is_tiny else _read()
    seq_len, vocab_size = int(arrays["seq_len"]), int(arrays["vocab_size"])
    shape = setting.pick(setting.shape, ModelConfig(depth=_DEPTH))
    rows = setting.pick(2, _POSITIONS // seq_len)
    num_rows = {name: len(arrays[f"{name}_ends"]) for name in ("real", "synthetic", "validation")}
    steps = setting.pick(4, _PASSES * num_rows["real"] // rows)
    wanted = min(round(_SHARE * steps * rows), num_rows["synthetic"]) if arm == "sbp" else 0
    sources = {name: Source(name, (number,)) for name, number in num_rows.items()}
    order = Mixture(sources["real"], sources["synthetic"] if wanted else None, steps * rows, wanted, seed)
    plan = make_plan(setting, shape=shape, rows=rows, steps=steps, seq_len=seq_len, compile=not setting.is_tiny)
    config = plan.config.model_copy(update={"seed": seed, "peak_lr": 3e-3})
    plan = replace(plan, config=config, mixture=order, vocab_size=vocab_size)
    read = partial(_batch, arrays, seq_len, is_pinned=setting.device.type == "cuda")
    curve: dict[int, float] = {}
    with group(plan) as device:
        model = optimizer = None
        for start in range(0, steps, max(1, steps // 10)):
            end = min(steps, start + max(1, steps // 10))
            batches = [read([order.address(row) for row in range(n * rows, (n + 1) * rows)]) for n in range(start, end)]
            done = train(plan, device, batches, first_step=start + 1, model=model, optimizer=optimizer)
            model, optimizer = done.model, done.optimizer
            curve[end] = _held_out(model, read, num_rows["validation"], rows, device)
    return {
        "parameters": num_parameters(shape, vocab_size),
        "positions": steps * rows * seq_len,
        "synthetic_rows": wanted,
        "held_out_nats": curve,
        "lowest_nats": min(curve.values()),
    }


@torch.no_grad()
def _held_out(model: Any, read: Callable[..., Batch], num_rows: int, size: int, device: torch.device) -> float:
    model.eval()
    total, tokens = 0.0, 0
    for start in range(0, num_rows, size):
        batch = read([Address("validation", 0, 0, row) for row in range(start, min(start + size, num_rows))])
        placed = batch.to(device)
        total += model(placed.input_ids_BT, placed.targets, placed.documents).sum().item()
        tokens += batch.num_supervised
    model.train()
    return total / tokens


def _batch(arrays: Arrays, seq_len: int, addresses: list[Address], *, is_pinned: bool) -> Batch:
    return make_batch(addresses, [_row(arrays, seq_len, address) for address in addresses], is_pinned=is_pinned)


def _row(arrays: Arrays, seq_len: int, address: Address) -> Row:
    """`NAME_ends` counts the documents of the rows, `NAME_lengths` the tokens of the documents, before each end."""
    ends, lengths, tokens = (arrays[f"{address.source}_{part}"] for part in ("ends", "lengths", "tokens"))
    first = ends[address.position - 1] if address.position else 0
    length_K = lengths[first : ends[address.position]]
    start = int(lengths[:first].sum(dtype=np.int64))
    num_tokens = int(length_K.sum())
    found = make_blank_row(seq_len)
    found.input_ids_T[:num_tokens] = tokens[start : start + num_tokens]
    found.document_ids_T[:num_tokens] = np.repeat(np.arange(len(length_K)), length_K)
    found.loss_mask_T[:num_tokens] = np.diff(found.document_ids_T[:num_tokens], prepend=-1) == 0
    return found


def _read() -> Arrays:
    if not _FILE.exists():
        raise Skip(f"no {_FILE}: benchmarks/gpu_nano.py makes it where the rows lie")
    with np.load(_FILE) as file:
        return dict(file)


def _invented(setting: Setting) -> Arrays:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"seq_len": setting.seq_len, "vocab_size": setting.vocab_size}
    for name in ("real", "synthetic", "validation"):
        lengths = np.tile([setting.seq_len // 4, setting.seq_len // 2], 6)
        arrays |= {
            f"{name}_ends": np.arange(2, 13, 2),
            f"{name}_lengths": lengths,
            f"{name}_tokens": rng.integers(3, setting.vocab_size, lengths.sum()),
        }
    return arrays


CASES: dict[str, Callable[[Setting], dict[str, Any]]] = {
    f"{arm}, seed {seed}": partial(compare, arm=arm, seed=seed)
    for seed in range(SEEDS)
    for arm in ("repetition", "sbp")
}


def main() -> None:
    """Write the rows of two trainings into one file."""
    from sbp_ray.artifacts import Artifact
    from sbp_ray.training.training_plan import rows_folder

    parser = argparse.ArgumentParser(description="Packs rows for `gpu.py --piece nano`.")
    parser.add_argument("--base", required=True, help="5_base_lm: its rows are the real text and the held-out text")
    parser.add_argument("--lm", required=True, help="8_lm: of its rows the synthetic ones")
    parser.add_argument("--seq-len", type=int, required=True, help="pretrain.seq_len")
    parser.add_argument("--vocab-size", type=int, required=True, help="of the model")
    arguments = parser.parse_args()
    arrays: dict[str, Any] = {"seq_len": arguments.seq_len, "vocab_size": arguments.vocab_size}
    for name, url in (("real", arguments.base), ("validation", arguments.base), ("synthetic", arguments.lm)):
        out = Artifact("rows", url)
        parts: dict[str, list[np.ndarray]] = {"ends": [], "lengths": [], "tokens": []}
        num_documents = 0
        for file in out.files(rows_folder(name), ".parquet"):
            index = out.read_table(file)
            length, row = (index.columns[place].to_numpy() for place in (0, 2))
            parts["ends"].append(num_documents + np.cumsum(np.bincount(row)))
            parts["lengths"].append(length)
            dtype = np.dtype(index.schema.metadata[b"dtype"].decode())
            parts["tokens"].append(np.frombuffer(out.read_bytes(file.removesuffix(".parquet") + ".bin"), dtype))
            num_documents += len(length)
        arrays |= {f"{name}_{part}": np.concatenate(columns) for part, columns in parts.items()}
    np.savez_compressed(_FILE, **arrays)
    print(f"{_FILE}: {_FILE.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
