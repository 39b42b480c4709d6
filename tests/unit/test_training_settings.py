"""Settings of the trainings that cannot be are refused in one line, and what they say is worked out."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from packed_rows import write_examples

from sbp_ray import cluster_limits
from sbp_ray.artifacts import Artifact
from sbp_ray.config import (
    MixtureConfig,
    ModelConfig,
    PretrainConfig,
    TrainingConfig,
    TrainingResources,
    shape_of_depth,
)
from sbp_ray.config_file import load_config
from sbp_ray.errors import SbpError
from sbp_ray.mixing import Mixture, Source
from sbp_ray.model import num_parameters
from sbp_ray.nll import LOGITS_AT_ONCE
from sbp_ray.stages import pretrain
from sbp_ray.text.pair_format import Example
from sbp_ray.training.build import load_torchao
from sbp_ray.training.devices import find_device
from sbp_ray.training.estimate import estimate_run, find_peak_flops, refuse_more_than
from sbp_ray.training.optim import build_optimizer
from sbp_ray.training.packed import Packed, count_mixture, packing_resources, read_packed
from sbp_ray.training.preflight import refuse_missing_gpu
from sbp_ray.training.sharding import name_backend
from sbp_ray.training.training_plan import TrainingPlan

REPO = Path(__file__).parents[2]
SMALL = Path(__file__).parent / "small.yaml"
TEN_ROWS = PretrainConfig(seq_len=32, batch_rows=2, total_tokens=320, peak_lr=1.0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["pretrain.peak_lr=0"], "pretrain.peak_lr=0: input should be greater than 0"),
        (["pretrain.final_lr=1"], "pretrain: final_lr (1.0) is more than peak_lr (0.003)"),
        (
            ["tune.schedule=wsd", "tune.warmup_share=0.5", "tune.decay_share=0.6"],
            "tune: warmup_share (0.5) and decay_share (0.6) are more than the whole run",
        ),
        (["pretrain.dtype=float32", "pretrain.float8=true"], "pretrain: float8 needs dtype bfloat16, which is float32"),
        (
            ["pretrain.resources.min_workers=3"],
            "pretrain.resources: min_workers (3) is more than num_workers (2)",
        ),
        (
            ["pretrain.resources.num_gpus=0.5"],  # NCCL refuses two ranks on one GPU
            "pretrain.resources: num_gpus is 0.5 for each of 2 workers, which train on one GPU each or on none: set "
            "it to 1 or 0",
        ),
        (
            ["tune.resources.num_gpus=2"],
            "tune.resources: num_gpus is 2 for each of 1 workers, which train on one GPU each or on none: set "
            "it to 1 or 0",
        ),
        (
            ["pretrain.resources.in_process=true"],
            "pretrain.resources: in_process is for one worker, and num_workers is 2",
        ),
        (
            ["mixture.synthetic_tokens=1000"],
            "mixture: real_tokens and synthetic_tokens come together: give both, or synthetic_share",
        ),
        (
            ["mixture.synthetic_tokens=100_000", "mixture.real_tokens=800_000"],
            "mixture.real_tokens and mixture.synthetic_tokens add up to 900,000, and pretrain.total_tokens is "
            "1,000,000: make them equal",
        ),
        (
            ["mixture.synthetic_share=0.1", "mixture.synthetic_tokens=1", "mixture.real_tokens=1"],
            "mixture: synthetic_share and token budgets say the same thing: give one of them",
        ),
        (["model.depth=0"], "model.depth=0: input should be greater than 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(SbpError) as error:
        load_config(SMALL, overrides)
    assert str(error.value) == f"{SMALL}: {message}"


def test_token_budgets_are_met_within_a_thousandth_and_each_synthetic_row_comes_once() -> None:
    """The paper's 200 B run in small: 125 B real tokens, read 12.5 times, and 75 B synthetic ones."""
    mixture = MixtureConfig(real_tokens=125_000_000, synthetic_tokens=75_000_000)
    assert mixture.share() == 0.375
    seq_len, total_rows = 4096, 48_828  # 200 M tokens
    real, synthetic = Source("real", (1221, 1221)), Source("synthetic", (10_000, 10_000))
    order = Mixture(real, synthetic, total_rows, round(mixture.share() * total_rows), 0)
    packed = {source.name: Packed(source, {"tokens": source.num_rows * 4080}) for source in (real, synthetic)}
    found = count_mixture(order, packed, seq_len)
    assert found["real"]["positions"] == pytest.approx(125_000_000, rel=1e-3)
    assert found["synthetic"]["positions"] == pytest.approx(75_000_000, rel=1e-3)
    assert found["real"]["passes"] == pytest.approx(12.5, rel=1e-3)
    addresses = [order.address(row) for row in range(total_rows)]
    once = [address for address in addresses if address.source == "synthetic"]
    assert len(once) == len(set(once)) == found["synthetic"]["rows"]
    tenths = [sum(a.source == "real" for a in addresses[start : start + 4882]) for start in range(0, 48_820, 4882)]
    assert max(tenths) - min(tenths) <= 1  # spread evenly


def test_depth_gives_a_shape_whose_heads_and_width_agree() -> None:
    assert shape_of_depth(12) == {
        "num_layers": 12,
        "hidden_size": 768,
        "num_heads": 12,
        "num_kv_heads": 6,
        "head_dim": 64,
        "ffn_size": 2048,
    }
    sizes = [num_parameters(ModelConfig(depth=depth), 32_768) for depth in range(1, 41)]
    assert sizes == sorted(sizes)
    assert all(m.num_heads * m.head_dim == m.hidden_size for m in (ModelConfig(depth=d) for d in range(1, 41)))


def test_what_is_given_beside_depth_counts() -> None:
    model = ModelConfig(depth=12, num_kv_heads=12)
    assert (model.num_kv_heads, model.num_layers) == (12, 12)
    assert ModelConfig.model_validate(model.model_dump()) == model


@pytest.mark.parametrize(
    ("mixture", "remedy"),
    [
        (MixtureConfig(synthetic_share=0.5), r"lower mixture.synthetic_share to 0.3, or raise synthesize"),
        (
            MixtureConfig(real_tokens=160, synthetic_tokens=160),
            r"set mixture.synthetic_tokens=96 and mixture.real_tokens=224, or raise synthesize",
        ),
    ],
)
def test_more_synthetic_text_than_there_is_is_refused_with_what_would_fit(
    new_artifact: Callable[[str], Artifact], mixture: MixtureConfig, remedy: str
) -> None:
    out = new_artifact("lm")
    packed = {"real": _write_rows(out, "real", 5), "synthetic": _write_rows(out, "synthetic", 3)}
    with pytest.raises(SbpError, match=rf"wants 5 synthetic rows \(0.5000 of the run\) and there are 3.*: {remedy}"):
        pretrain.plan_mixture(TEN_ROWS, mixture, packed)
    fitting = pretrain.plan_mixture(TEN_ROWS, MixtureConfig(synthetic_share=0.3), packed)
    assert fitting.rows() == {"real": 7, "synthetic": 3}


def test_a_corpus_without_train_documents_is_refused(new_artifact: Callable[[str], Artifact]) -> None:
    out = new_artifact("base_lm")
    with pytest.raises(SbpError, match=r"the corpus has no train documents: check ingest\.input"):
        pretrain.plan_mixture(TEN_ROWS, MixtureConfig(), {"real": _write_rows(out, "real", 0)})


def _write_rows(out: Artifact, source: str, number: int) -> Packed:
    write_examples(out, source, [Example(np.zeros(32, np.int32), 1)] * number, 32)
    return read_packed(out, source)


def test_packing_takes_the_cpus_of_a_training_and_none_of_its_gpus() -> None:
    taken = packing_resources(TrainingResources(num_workers=64, num_cpus=8, num_gpus=1))
    assert (taken.num_workers, taken.num_cpus, taken.num_gpus) == (512, 1, 0)


def test_settings_for_gpus_are_refused_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_limits, "room", lambda: {"CPU": 64.0, "memory": 1e11})
    with pytest.raises(SbpError, match=r"pretrain.resources wants 1 GPUs, the cluster can have at most 0: lower pret"):
        cluster_limits.refuse_what_cannot_fit("pretrain", load_config(REPO / "configs/h200.yaml"))


def test_float8_without_gpus_is_refused() -> None:
    with pytest.raises(SbpError, match=r"tune.float8 needs GPUs: set tune.resources.num_gpus, or tune.float8=false"):
        refuse_missing_gpu("tune", TrainingConfig(batch_rows=1, peak_lr=1.0, float8=True))


def test_float8_without_torchao_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(SbpError, match=r"in the checkout, uv pip install -e '.\[float8\]'"):
        load_torchao()


def test_only_matrices_decay_and_every_parameter_is_trained() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 3), torch.nn.RMSNorm(3))
    decayed, kept = build_optimizer(model, TEN_ROWS.model_copy(update={"weight_decay": 0.3})).param_groups
    assert [tuple(p.shape) for p in decayed["params"]] == [(7, 4), (3, 4)]
    assert [tuple(p.shape) for p in kept["params"]] == [(3,), (3,)]
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)


def test_a_step_without_gradient_shrinks_matrices_by_the_decay_alone() -> None:
    layer = torch.nn.Linear(2, 2)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    build_optimizer(layer, TEN_ROWS.model_copy(update={"weight_decay": 0.25, "peak_lr": 0.5})).step()
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * (1 - 0.5 * 0.25))
    torch.testing.assert_close(layer.bias.detach(), before["bias"])


@pytest.mark.parametrize("has_gpu", [False, True])
def test_a_training_without_gpus_of_its_own_leaves_those_of_the_node_alone(
    monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: has_gpu)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 3)
    assert find_device(TrainingResources()).type == "cpu"
    assert name_backend(TrainingResources()) == "gloo"
    wanting = TrainingResources(num_gpus=1)
    if has_gpu:
        assert str(find_device(wanting)) == "cuda:3"
    else:
        with pytest.raises(SbpError, match=r"resources.num_gpus=1, and torch finds no GPU on this node \("):
            find_device(wanting)


def test_a_driver_that_is_too_old_is_told_in_torchs_words_and_with_the_one_it_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040). Please update\nmore")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.init", refuse)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    with pytest.raises(SbpError) as error:
        find_device(TrainingResources(num_gpus=1))
    assert str(error.value) == (
        "resources.num_gpus=1, and torch finds no GPU on this node (The NVIDIA driver on your system is too old (found "
        "version 12040)): set it to 0, or install an NVIDIA driver for CUDA 13.0, which this torch was built for"
    )


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L40", 181),
        ("NVIDIA L4", 121),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_is_the_cards_own_and_of_bfloat16_only(
    monkeypatch: pytest.MonkeyPatch, name: str, tflops: float | None
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    cuda = torch.device("cuda", 0)
    assert find_peak_flops(cuda, "bfloat16") == (None if tflops is None else tflops * 1e12)
    assert find_peak_flops(cuda, "float32") is None


def test_a_gpu_too_small_is_refused_with_a_change_that_fits() -> None:
    """1 B parameters at 16 bytes, and 8 rows of 4096 tokens."""
    shape, vocab_size = ModelConfig(depth=27), 49_152
    resources = TrainingResources(micro_batch_rows=8, num_gpus=1)
    config = PretrainConfig(seq_len=4096, batch_rows=64, total_tokens=1, peak_lr=1.0, resources=resources)
    out, source = Artifact("none", "nowhere"), Source("real", (64,))
    order = Mixture(source, None, 64, 0, 0)
    plan = TrainingPlan("lm", config, order, 1, out, source, source, out, vocab_size, (0, 1, 2), shape)
    state = 16 * num_parameters(shape, vocab_size)
    refuse_more_than(state + 100 * 2**30, plan, 1)
    with pytest.raises(SbpError) as error:
        refuse_more_than(state + 8 * 2**30, plan, 1)
    fact, remedy = str(error.value).split(": ", 1)
    assert re.fullmatch(r"lm needs at least \d+\.\d GiB on each of 1 ranks, whose GPUs have \d+\.\d GiB", fact)
    named = dict(re.findall(r"resources\.(\w+)=(\w+)", remedy))
    assert named
    spared = config.model_copy(update={"resources": TrainingResources.model_validate(resources.model_dump() | named)})
    refuse_more_than(state + 8 * 2**30, replace(plan, config=spared), 1)
    with pytest.raises(
        SbpError, match=r"GiB: raise resources\.num_workers and resources\.shard_ranks, the ranks among"
    ):
        refuse_more_than(state // 2, plan, 1)
    refuse_more_than(state // 2 + 100 * 2**30, plan, 64)


def test_a_gpu_too_small_for_its_part_of_a_copy_is_refused_with_more_ranks_to_share_it() -> None:
    """1 B parameters on 24 ranks of one row each, of which those of a node of eight share a copy."""
    shape, vocab_size = ModelConfig(depth=27), 49_152
    resources = TrainingResources(num_workers=24, num_gpus=1, shard_ranks=8, activation_checkpointing="full")
    config = PretrainConfig(seq_len=4096, batch_rows=24, total_tokens=1, peak_lr=1.0, resources=resources)
    out, source = Artifact("none", "nowhere"), Source("real", (64,))
    order = Mixture(source, None, 24, 0, 0)
    plan = TrainingPlan("lm", config, order, 1, out, source, source, out, vocab_size, (0, 1, 2), shape)
    others = round(estimate_run(plan, vocab_size, 24, None).activations_gib * 2**30) + 12 * LOGITS_AT_ONCE["cuda"]

    def room(shard_ranks: int) -> int:
        return others + 16 * num_parameters(shape, vocab_size) // shard_ranks + 2**10

    refuse_more_than(room(8), plan, 24)
    for found, asked in ((room(12), 12), (room(8) - 2**20, 12), (room(24), 24)):
        with pytest.raises(SbpError, match=rf"GiB: set resources\.shard_ranks={asked}, for which"):
            refuse_more_than(found, plan, 24)
    with pytest.raises(
        SbpError, match=r"GiB: raise resources\.num_workers and resources\.shard_ranks, the ranks among"
    ):
        refuse_more_than(room(24) - 2**20, plan, 24)


def test_a_gpu_that_is_not_there_is_named_before_a_training_in_process_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refuse_missing_gpu(
        "pretrain", TEN_ROWS.model_copy(update={"resources": TrainingResources(num_gpus=1)})
    )  # of a cluster
    with pytest.raises(SbpError, match=r"resources.num_gpus=1, and torch finds no GPU on this node"):
        refuse_missing_gpu(
            "pretrain", TEN_ROWS.model_copy(update={"resources": TrainingResources(num_gpus=1, in_process=True)})
        )


@pytest.mark.parametrize("name", ["h200", "paper-3b-1t", "paper-3b-200b", "paper-6b-1t"])
def test_what_is_shipped_for_gpus_of_141_gb_fits_there(name: str) -> None:
    config = load_config(REPO / f"configs/{name}.yaml")
    source = Source("real", (64,))
    for cfg in (config.pretrain, config.tune):
        of_node = cfg.resources.model_copy(update={"shard_ranks": min(8, cfg.resources.num_workers)})
        cfg = cfg.model_copy(update={"resources": of_node})  # by nodes of eight, as they are split there
        order = Mixture(source, None, 64, 0, 0)
        out, vocab_size = Artifact("none", "nowhere"), config.model.vocab_size or 32_768
        plan = TrainingPlan("lm", cfg, order, 1, out, source, source, out, vocab_size, (0, 1, 2), config.model)
        refuse_more_than(131 * 2**30, plan, cfg.resources.num_workers)
        estimate = estimate_run(plan, vocab_size, cfg.resources.num_workers, None)
        assert estimate.state_gib + estimate.activations_gib < 80  # which nothing that is compiled takes all of
