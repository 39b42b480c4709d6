"""The export of sharded weights: files that each rank writes, equal to what gathering the model on one rank gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from safetensors.torch import load_file
from tiny import tiny_plan
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoModelForCausalLM

from sbp_ray.training import export
from sbp_ray.training.build import build_sharded_model
from sbp_ray.training.export import export_model, is_exported, read_exported_step, split_weights
from sbp_ray.training.rows import RowReader
from sbp_ray.training.training_plan import TrainingPlan

CPU = torch.device("cpu")


def _export(plan: TrainingPlan, gathered: Path) -> None:
    """Export fresh weights, and write them to a file as torch gathers them on rank 0."""
    model = build_sharded_model(plan, CPU)
    export_model(plan, model, RowReader(plan.out, plan.config), CPU, step=6)
    everything = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights = get_model_state_dict(model, options=everything)
    if dist.get_rank() == 0:
        torch.save({name.removeprefix("lm."): weight for name, weight in weights.items()}, gathered)


@pytest.mark.parametrize("file_bytes", [4 << 30, 12_000])
def test_two_ranks_export_the_bits_of_the_trained_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file_bytes: int
) -> None:
    """In bfloat16, whose rounded weights must not be what is exported."""
    monkeypatch.setattr(export, "FILE_BYTES", file_bytes)
    plan = tiny_plan(tmp_path / "run", num_workers=2, dtype="bfloat16")
    plan.out.commit_folder(Path(plan.out.path("tokenizer")), "model")
    Path(plan.out.path("model/model-00009-of-00009.safetensors")).write_bytes(b"of an interrupted attempt")
    run_ranks(2, tmp_path, lambda: _export(plan, tmp_path / "gathered.pt"))
    gathered = torch.load(tmp_path / "gathered.pt")
    assert is_exported(plan.out)
    assert read_exported_step(plan.out) == 6

    files = sorted(Path(plan.out.path("model")).glob("*.safetensors"))
    if file_bytes > 1 << 30:
        assert [file.name for file in files] == ["model.safetensors"]
    else:
        assert len(files) > 2  # more than one for each rank
        names = [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
        assert [file.name for file in files] == names  # and nothing of the interrupted attempt
        assert all(file.stat().st_size < 45_000 for file in files)  # the embedding, 320 x 32 in float32, and a header
    written = {name: weight for file in files for name, weight in load_file(file).items()}
    card = Path(plan.out.path("model/README.md")).read_text()
    assert f"| parameters | {sum(weight.numel() for weight in written.values()):,} |" in card
    assert "| weights after step | 6 of " in card
    assert "| begun from | random weights |" in card
    assert "lm_head.weight" not in written  # it is the embedding
    assert written.keys() | {"lm_head.weight"} == gathered.keys()
    assert all(torch.equal(weight, gathered[name]) for name, weight in written.items())
    lm = AutoModelForCausalLM.from_pretrained(plan.out.path("model"), dtype=torch.float32)
    loaded = lm.state_dict()
    assert loaded.keys() == gathered.keys()
    assert all(torch.equal(weight, gathered[name]) for name, weight in loaded.items())
    lm.save_pretrained(tmp_path / "saved")
    if len(files) == 1:
        assert files[0].read_bytes() == (tmp_path / "saved" / "model.safetensors").read_bytes()


def test_files_are_filled_in_order_and_a_larger_tensor_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "FILE_BYTES", 10)
    assert split_weights({"a": 4, "b": 6}) == {"model.safetensors": ["a", "b"]}
    assert split_weights({"a": 4, "b": 7, "c": 11, "d": 1}) == {
        "model-00001-of-00004.safetensors": ["a"],
        "model-00002-of-00004.safetensors": ["b"],
        "model-00003-of-00004.safetensors": ["c"],
        "model-00004-of-00004.safetensors": ["d"],
    }
