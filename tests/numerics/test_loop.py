"""The loop itself, on real gloo ranks and without Ray."""

import gzip
import json
import logging
import math
import os
import re
import resource
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.distributed as dist
from packed_rows import documents_of, read_rows
from ranks import run_ranks
from tiny import SEQ_LEN, losses_of, rows_of, tiny_plan, weights_of
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sbp_ray.artifacts import Artifact
from sbp_ray.config import TrainingConfig, TrainingResources
from sbp_ray.errors import SbpError
from sbp_ray.model import build_model
from sbp_ray.training import build, export, loop, meter
from sbp_ray.training.build import build_sharded_model
from sbp_ray.training.checkpoint import list_checkpoints
from sbp_ray.training.export import export_model, read_exported_step
from sbp_ray.training.journal import count_attempts
from sbp_ray.training.optim import lr_at
from sbp_ray.training.sharding import count_shard_ranks, process_group, refusing_together
from sbp_ray.training.training_plan import TrainingPlan


def _train(plan: TrainingPlan, stop_after: int | None = None, *, sgd: bool = False) -> None:
    if sgd:  # Adam would hide a gradient that is wrong by a factor
        loop.build_optimizer = lambda model, cfg: torch.optim.SGD(model.parameters(), lr=cfg.peak_lr)  # type: ignore
    loop.train(plan, stop_after=stop_after)


def _change_models(change: Callable[[Any], object]) -> None:
    """Have the loop change each model that it builds, in a rank's own process."""

    def build(plan: TrainingPlan, device: torch.device) -> Any:
        model = build_sharded_model(plan, device)
        change(model)
        return model

    loop.build_sharded_model = build  # type: ignore[assignment]


def test_sharded_training_is_single_training(tmp_path: Path) -> None:
    settings = {"num_steps": 3, "peak_lr": 0.5, "max_grad_norm": 1e9}
    single = tiny_plan(tmp_path / "single", **settings)
    run_ranks(1, tmp_path, lambda: _train(single, sgd=True))
    for num_ranks, shard_ranks in ((2, None), (4, None), (4, 2)):  # the last: two copies, each on two ranks
        out = tmp_path / f"sharded-{num_ranks}-{shard_ranks}"
        sharded = tiny_plan(out, num_workers=num_ranks, shard_ranks=shard_ranks, **settings)
        run_ranks(num_ranks, tmp_path, lambda plan=sharded: _train(plan, sgd=True))
        assert losses_of(sharded) == pytest.approx(losses_of(single), rel=1e-5)
        torch.testing.assert_close(weights_of(sharded), weights_of(single), rtol=1e-5, atol=1e-6)


def test_a_head_of_its_own_is_gathered_after_the_layers_and_trained_as_in_a_single_process(tmp_path: Path) -> None:
    """Also where the average of the weights is put in their place in between, to be measured."""

    def train(plan: TrainingPlan) -> list[tuple[bool, ...]]:
        model = loop.build_sharded_model(plan, torch.device("cpu"))
        lm = model.lm
        seen: list[tuple[bool, ...]] = []

        def look(*_: Any) -> None:
            seen.append(tuple(isinstance(each.weight, DTensor) for each in (lm.model.embed_tokens, lm.lm_head)))

        lm.model.layers[1].register_forward_pre_hook(look)
        model.register_forward_hook(look)
        loop.build_sharded_model = lambda *_: model  # type: ignore[assignment]
        _train(plan, sgd=True)
        return seen

    settings = {"num_steps": 3, "peak_lr": 0.5, "max_grad_norm": 1e9, "ema_decay": 0.5, "micro_batch_rows": 1}
    plans = [tiny_plan(tmp_path / str(num_ranks), num_workers=num_ranks, **settings) for num_ranks in (1, 2)]
    untied = plans[0].model.model_copy(update={"tie_embeddings": False})
    single, sharded = (replace(plan, model=untied) for plan in plans)
    run_ranks(1, tmp_path, train, single)
    before, after = run_ranks(2, tmp_path, train, sharded)[0][:2]
    assert (before, after) == ((False, True), (False, False))
    assert losses_of(sharded) == pytest.approx(losses_of(single), rel=1e-5)
    torch.testing.assert_close(weights_of(sharded), weights_of(single), rtol=1e-5, atol=1e-6)


def test_copies_of_the_weights_go_on_from_a_checkpoint_of_one_copy_and_hold_a_part_each(tmp_path: Path) -> None:
    settings = {"num_workers": 4, "num_steps": 4, "checkpoint_every": 2}
    one, several = (tiny_plan(tmp_path / name, shard_ranks=ranks, **settings) for name, ranks in (("a", 4), ("b", 2)))

    def count_parts(plan: TrainingPlan) -> int:
        model = build_sharded_model(plan, torch.device("cpu"))
        return sum(parameter.to_local().numel() for parameter in model.parameters())

    whole = sum(run_ranks(4, tmp_path, lambda: count_parts(one)))
    assert sum(run_ranks(4, tmp_path, lambda: count_parts(several))) == 2 * whole
    run_ranks(4, tmp_path, lambda: _train(one, stop_after=2))
    shutil.copytree(one.out.path(""), several.out.path(""), dirs_exist_ok=True)
    for plan in (one, several):
        run_ranks(4, tmp_path, lambda plan=plan: _train(plan))
    torch.testing.assert_close(weights_of(several), weights_of(one), rtol=1e-5, atol=1e-6)


def test_a_trace_holds_the_steps_asked_for_and_the_weights_are_those_without_it(tmp_path: Path) -> None:
    """Rank 0 writes it; one update a step is what `Optimizer.step` records."""
    plain = tiny_plan(tmp_path / "plain", num_workers=2, num_steps=5)
    traced = tiny_plan(tmp_path / "traced", num_workers=2, num_steps=5, profile_steps=[2, 4])
    for plan in (plain, traced):
        run_ranks(2, tmp_path, lambda plan=plan: _train(plan))
    assert traced.out.files("profile") == ["profile/steps-2-4.json.gz"]
    trace = json.loads(gzip.decompress(traced.out.read_bytes("profile/steps-2-4.json.gz")))
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name.startswith("Optimizer.step") for name in names) == 3
    assert any(name == "aten::mm" for name in names)
    torch.testing.assert_close(weights_of(traced), weights_of(plain), rtol=0, atol=0)


def test_a_trace_of_a_training_that_goes_on_within_the_steps_says_which_it_holds(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path, num_steps=5, checkpoint_every=3, profile_steps=[2, 9])
    run_ranks(1, tmp_path, lambda: _train(plan, stop_after=3))
    assert plan.out.files("profile") == []
    run_ranks(1, tmp_path, lambda: _train(plan))
    assert plan.out.files("profile") == ["profile/steps-4-5.json.gz"]


@pytest.mark.parametrize(
    ("wanted", "ranks_of_node", "found"),
    [
        (None, [8] * 8, 8),
        (None, [8] * 16, 16),
        (None, [8] * 24, 8),
        (None, [0] * 24, 24),  # nobody knows
        (None, [8] * 8 + [4] * 4, 12),
        (None, [4] * 4 + [8] * 8, 12),
        (None, [8] * 16 + [4] * 4, 20),
        (None, [2, 2, 1], 3),
        (None, [8], 1),  # left in the environment of a process by itself
        (4, [8] * 16, 4),
        (4, [8] * 8 + [4] * 4, 4),
    ],
)
def test_weights_are_split_within_a_node_where_there_are_more_than_two_of_one_size(
    wanted: int | None, ranks_of_node: list[int], found: int
) -> None:
    assert count_shard_ranks(wanted, ranks_of_node) == found


@pytest.mark.parametrize(("ranks_of_node", "mesh"), [((2, 2, 1), (3,)), ((1, 1, 1), (3, 1))])
def test_ranks_on_nodes_of_different_size_train_on_the_same_mesh(
    tmp_path: Path, ranks_of_node: tuple[int, ...], mesh: tuple[int, ...]
) -> None:
    """The rank that is alone on its node would else hold a copy by itself, and wait for others that do so too. How many
    share a copy is known where the memory is checked."""
    plan = tiny_plan(tmp_path / "run", num_steps=1)

    def train() -> tuple[tuple[int, ...], int]:
        os.environ["LOCAL_WORLD_SIZE"] = str(ranks_of_node[dist.get_rank()])
        shapes: list[tuple[int, ...]] = []
        numbers: list[int] = []
        loop.refuse_too_little_memory = lambda plan, *_: numbers.append(plan.config.resources.shard_ranks)
        _change_models(lambda model: shapes.append(model.lm.model.norm.weight.device_mesh.shape))
        _train(plan)
        return shapes[0], numbers[0]

    assert run_ranks(3, tmp_path, train) == [(mesh, mesh[-1])] * 3


def test_ranks_that_do_not_come_out_even_are_refused() -> None:
    with pytest.raises(SbpError, match=r"resources.shard_ranks=3 does not divide the 8 ranks: set it to a divisor"):
        count_shard_ranks(3, [8] * 8)


@pytest.mark.parametrize(
    ("wanted", "num_ranks", "found"), [(8, 64, 8), (8, 56, 8), (8, 63, 9), (8, 60, 10), (8, 61, 61), (8, 4, 4)]
)
def test_ranks_that_may_be_fewer_share_a_copy_among_the_next_number_that_comes_out_even(
    wanted: int, num_ranks: int, found: int
) -> None:
    assert count_shard_ranks(wanted, [8] * num_ranks, may_be_more=True) == found


def test_a_training_that_may_shrink_goes_on_where_the_ranks_no_longer_come_out_even(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Four ranks, two to a copy, then three; one line says what they do instead."""
    monkeypatch.setattr(logging.getLogger("sbp_ray"), "propagate", True)
    settings = {"num_workers": 4, "num_steps": 4, "checkpoint_every": 2, "shard_ranks": 2}
    fixed, elastic = (
        tiny_plan(tmp_path / name, min_workers=least, **settings) for name, least in (("a", None), ("b", 1))
    )

    def train() -> list[str]:
        with caplog.at_level(logging.INFO, logger="sbp_ray.training.sharding"):
            _train(elastic)
        return [line for line in caplog.messages if "shard_ranks" in line]

    run_ranks(4, tmp_path, lambda: _train(fixed))
    run_ranks(4, tmp_path, lambda: _train(elastic, stop_after=2))
    fact = "tiny | resources.shard_ranks=2 does not divide the 3 ranks that there are"
    said = f"{fact}: each copy of the weights is split over 3 instead"
    assert run_ranks(3, tmp_path, train) == [[said], [], []]
    torch.testing.assert_close(weights_of(elastic), weights_of(fixed), rtol=1e-5, atol=1e-6)


def test_accumulated_micro_batches_are_one_batch(tmp_path: Path) -> None:
    settings = {"num_steps": 3, "peak_lr": 0.5}  # clipped, too
    small = tiny_plan(tmp_path / "small", micro_batch_rows=1, **settings)
    large = tiny_plan(tmp_path / "large", micro_batch_rows=4, **settings)
    for plan in (small, large):
        run_ranks(1, tmp_path, lambda plan=plan: _train(plan, sgd=True))
    torch.testing.assert_close(weights_of(small), weights_of(large), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("is_reduced", [False, True])
def test_gradients_that_are_reduced_each_time_are_the_same_and_never_lie_whole_on_a_rank(
    tmp_path: Path, is_reduced: bool
) -> None:
    settings = {"num_steps": 2, "peak_lr": 0.5}
    single = tiny_plan(tmp_path / "single", micro_batch_rows=4, **settings)
    sharded = tiny_plan(tmp_path / "sharded", num_workers=2, reduce_every_micro_batch=is_reduced, **settings)

    def train() -> list[bool]:
        model = loop.build_sharded_model(sharded, torch.device("cpu"))
        has_own_part: list[bool] = []
        sharded_layer = list(model.lm.model.layers[0].parameters())
        model.register_forward_pre_hook(
            lambda *_: has_own_part.append(all(parameter.grad is not None for parameter in sharded_layer))
        )
        loop.build_sharded_model = lambda *_: model  # type: ignore[assignment]
        _train(sharded, stop_after=1, sgd=True)
        return has_own_part[:2]

    run_ranks(1, tmp_path, lambda: _train(single, sgd=True))
    assert run_ranks(2, tmp_path, train) == [[False, is_reduced]] * 2  # before each micro-batch of the first step
    run_ranks(2, tmp_path, lambda: _train(sharded, sgd=True))
    torch.testing.assert_close(weights_of(sharded), weights_of(single), rtol=1e-5, atol=1e-6)


def test_six_steps_are_three_and_after_a_kill_another_three_bit_for_bit(tmp_path: Path) -> None:
    whole = tiny_plan(tmp_path / "whole", num_workers=2)
    halves = tiny_plan(tmp_path / "halves", num_workers=2, checkpoint_every=1)
    run_ranks(2, tmp_path, lambda: _train(whole))
    run_ranks(2, tmp_path, lambda: _die_after(halves, 4))  # step 3 is safe: step 4 waits for it before it is saved
    assert _steps_saved(halves)[-1] in (3, 4)
    assert not halves.out.exists("model")
    run_ranks(2, tmp_path, lambda: _train(halves))
    assert losses_of(halves) == losses_of(whole)
    assert [row["step"] for row in rows_of(halves)] == [1, 2, 3, 4, 5, 6]
    assert all(torch.equal(tensor, weights_of(halves)[name]) for name, tensor in weights_of(whole).items())


def _die_after(plan: TrainingPlan, step: int) -> None:
    """kill -9, from within, right after the step was recorded."""
    loop.train(plan, on_step=lambda row: os.kill(os.getpid(), signal.SIGKILL) if row["step"] == step + 1 else None)


def _steps_saved(plan: TrainingPlan) -> list[int]:
    return sorted(step for step, _ in list_checkpoints(plan.out))


def test_steps_that_are_done_again_are_counted_as_wasted(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", checkpoint_every=2)
    run_ranks(1, tmp_path, lambda: _train(plan, stop_after=5))  # steps 3 and 4 are saved, the fifth is not
    run_ranks(1, tmp_path, lambda: _train(plan))
    assert count_attempts(plan.out) == {"attempts": 2, "wasted_steps": 1}


def test_a_checkpoint_of_two_ranks_resumes_on_any_number(tmp_path: Path) -> None:
    whole = tiny_plan(tmp_path / "whole", num_steps=4)
    half = tiny_plan(tmp_path / "half", num_steps=4, num_workers=2, checkpoint_every=2)
    run_ranks(1, tmp_path, lambda: _train(whole))
    run_ranks(2, tmp_path, lambda: _train(half, stop_after=2))
    for num_ranks in (1, 3, 4):  # three do not divide the four rows: one of them gets padding
        url = shutil.copytree(half.out.url, tmp_path / f"on-{num_ranks}")
        halves = replace(half, out=Artifact("base_lm", str(url)))
        run_ranks(num_ranks, tmp_path, lambda plan=halves: _train(plan))
        assert losses_of(halves) == pytest.approx(losses_of(whole), rel=1e-4)
        assert [row["supervised_tokens"] for row in rows_of(halves)] == [
            row["supervised_tokens"] for row in rows_of(whole)
        ]


def test_a_checkpoint_that_was_cut_off_is_never_chosen(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", checkpoint_every=2)
    run_ranks(1, tmp_path, lambda: _train(plan, stop_after=4))
    folder = Path(plan.out.path("checkpoints"))
    [shard] = (folder / "step-000004").glob("*.distcp")
    shard.write_bytes(shard.read_bytes()[:-1])  # damaged, though its marker is there
    unmarked = folder / "step-000005"
    unmarked.mkdir()
    (unmarked / shard.name).write_bytes(b"")  # cut off before its marker
    run_ranks(1, tmp_path, lambda: _train(plan, stop_after=3))
    assert [row["step"] for row in rows_of(plan)] == [1, 2, 3]  # resumed from step 2


def test_a_checkpoint_that_cannot_be_written_says_so_and_leaves_the_one_before_it(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", num_workers=2, checkpoint_every=2)
    run_ranks(2, tmp_path, lambda: _train(plan, stop_after=2))

    def fill_up() -> str:
        if dist.get_rank() == 1:  # the other rank's disk has room
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(SbpError) as error:
            _train(plan, stop_after=4)
        return str(error.value)

    messages = run_ranks(2, tmp_path, fill_up)
    assert messages[0] == messages[1]
    assert re.search(r"step-000004 cannot be written \(.*File too large.*\): make room, and run the same", messages[0])
    assert _steps_saved(plan) == [2]
    assert not plan.out.exists("checkpoints/step-000004")
    run_ranks(2, tmp_path, lambda: _train(plan, stop_after=4))
    assert _steps_saved(plan) == [2, 4]


@pytest.mark.parametrize(
    ("num_bytes", "what"),
    [
        (100, "metrics.jsonl"),
        (4_000, "model"),
        (60_000, "model"),
    ],  # second row; held-out NLL; weights
)
def test_a_disk_that_is_full_for_one_rank_is_one_line_on_all_and_nothing_is_lost(
    tmp_path: Path, num_bytes: int, what: str
) -> None:
    plan = tiny_plan(tmp_path / "run", num_workers=2, num_steps=4, checkpoint_every=2)

    def fill_up(*_: Any) -> None:
        if dist.get_rank() == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes))

    def run() -> str:
        loop.export_model = lambda *arguments: (fill_up(), export_model(*arguments))  # type: ignore[assignment]
        with pytest.raises(SbpError) as error:
            loop.train(plan, on_step=fill_up if what == "metrics.jsonl" else None)
        return str(error.value)

    messages = run_ranks(2, tmp_path, run)
    assert messages[0] == messages[1]
    assert re.search(rf"/{what} cannot be written \(.*too large.*\): make room, and run the same", messages[0])
    run_ranks(2, tmp_path, lambda: _train(plan))
    assert [row["step"] for row in rows_of(plan)] == [1, 2, 3, 4]
    assert plan.out.exists("model/model.safetensors")


_OWN_WORK = [
    (loop, "find_device"),
    (loop, "refuse_too_little_memory"),
    (build, "load_base"),
    (build, "_load_teacher"),
    (build, "_use_float8"),
    (export, "load_tokenizer"),
]
"""Of a rank by itself, which others may do well."""


@pytest.mark.parametrize(("module", "name"), _OWN_WORK, ids=[name for _, name in _OWN_WORK])
def test_what_one_rank_refuses_is_one_line_on_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, name: str
) -> None:
    plan = tiny_plan(tmp_path / "run", num_workers=2, num_steps=1, float8=name == "_use_float8")
    if name in ("load_base", "_load_teacher"):
        base = str(tmp_path / "base")
        build_model(plan.model, plan.vocab_size, plan.special, 0).save_pretrained(base)
        plan = replace(plan, base=base) if name == "load_base" else replace(plan, teachers=(base,), teacher_share=0.5)
    well = getattr(module, name)

    def refuse(*arguments: Any) -> Any:
        if dist.get_rank() == refusing:
            raise SbpError("this node lacks it: get it")
        return None if name == "_use_float8" else well(*arguments)

    def train() -> str:
        with pytest.raises(SbpError) as error:
            _train(plan)
        return str(error.value)

    refusing = 0 if name == "load_tokenizer" else 1  # the first alone writes it
    monkeypatch.setattr(module, name, refuse)
    assert run_ranks(2, tmp_path, train) == ["this node lacks it: get it"] * 2


def test_a_store_that_one_rank_cannot_open_is_one_line_on_all(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", num_workers=2, num_steps=1)

    def train() -> str:
        nowhere = replace(plan, out=Artifact("base_lm", "nostore://bucket/run"))
        with pytest.raises(SbpError) as error:
            _train(nowhere if dist.get_rank() == 0 else plan)
        return str(error.value)

    one, other = run_ranks(2, tmp_path, train)
    assert one == other
    assert one.startswith("nostore://bucket/run: cannot be opened: ")


def test_what_is_no_refusal_is_raised_as_it_is_by_the_rank_that_met_it() -> None:
    """Of CUDA, say: Ray sees the rank fail, and starts all again."""
    with (
        process_group(TrainingResources()),
        pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory$"),
        refusing_together(),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")


def test_a_checkpoint_of_another_shape_is_refused_with_both_shapes(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run")
    run_ranks(1, tmp_path, lambda: _train(plan, stop_after=3))
    wider = replace(plan, model=plan.model.model_copy(update={"ffn_size": 64}))
    resources = plan.config.resources.model_copy(update={"checkpoint_every": 3})
    thirds = replace(plan, config=plan.config.model_copy(update={"resources": resources}))

    def resume() -> str:
        with pytest.raises(SbpError) as error:
            _train(wider)
        return str(error.value)

    run_ranks(1, tmp_path, lambda: _train(thirds))
    [message] = run_ranks(1, tmp_path, resume)
    assert "holds lm.model.layers.0.mlp.gate_proj.weight as (48, 32), the model as (64, 32): use a new" in message


def test_a_notice_brings_one_checkpoint_at_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "ASK_EVERY_S", 0.0)
    plan = tiny_plan(tmp_path / "run", num_workers=2, checkpoint_every=100)
    asked: list[int] = []

    def is_preempted() -> bool:
        asked.append(len(asked))
        return len(asked) == 3

    def run() -> int:
        loop.train(plan, is_preempted=is_preempted, stop_after=5)
        return len(asked)

    assert run_ranks(2, tmp_path, run) == [3, 3]  # all ranks ask at the same steps, and no more once it was said
    assert _steps_saved(plan) == [3]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    """A plan of 20 steps that one rank has carried out."""
    folder = tmp_path_factory.mktemp("trained")
    plan = tiny_plan(folder / "run", num_steps=20, checkpoint_every=8)
    run_ranks(1, folder, lambda: _train(plan))
    return plan


def test_only_the_newest_two_checkpoints_are_kept(trained: TrainingPlan) -> None:
    folder = Path(trained.out.path("checkpoints"))
    assert sorted(path.name for path in folder.iterdir()) == ["step-000016", "step-000020"]


def test_a_loss_that_is_not_finite_stops_before_the_update(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", peak_lr=1e30, warmup_share=0.0, checkpoint_every=1)
    [message] = run_ranks(1, tmp_path, lambda: _diverges(plan))
    assert message.startswith("tiny step 2: loss ")
    assert "grad_norm nan, first in the gradient of model.layers.1.post_attention_layernorm.weight: lower" in message
    assert not plan.out.exists("model")
    assert _steps_saved(plan) == [1]


def test_rows_whose_loss_is_not_finite_are_named(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run")

    def broken() -> str:
        _change_models(lambda model: model.lm.model.norm.weight.to_local().detach().fill_(math.nan))
        return _diverges(plan)

    [message] = run_ranks(1, tmp_path, broken)
    places = ", ".join(f"real {row.shard}:{row.position}" for row in map(plan.mixture.address, range(4)))
    assert message.startswith(f"tiny step 1: loss nan nats, grad_norm nan, in rows {places}: lower peak_lr (0.01)")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_on_one_rank_is_named_on_all_and_no_weight_is_touched(
    tmp_path: Path, value: float
) -> None:
    plan = tiny_plan(tmp_path / "run", num_workers=2, checkpoint_every=1)

    def poisoned() -> tuple[str, bool]:
        models = []

        def poison(model: Any) -> None:
            models.append(model)
            model.lm.model.layers[1].mlp.up_proj.weight.register_post_accumulate_grad_hook(
                lambda p: p.grad.to_local().fill_(value) if dist.get_rank() == 1 else None
            )

        _change_models(poison)
        message = _diverges(plan)
        fresh = build_sharded_model(plan, torch.device("cpu"))
        same = zip(models[0].parameters(), fresh.parameters(), strict=True)
        return message, all(torch.equal(ours.to_local(), theirs.to_local()) for ours, theirs in same)

    for message, is_untouched in run_ranks(2, tmp_path, poisoned):
        assert "first in the gradient of model.layers.1.mlp.up_proj.weight: lower peak_lr" in message
        assert is_untouched
    assert _steps_saved(plan) == []


def test_the_layer_in_which_the_backward_pass_broke_is_named(tmp_path: Path) -> None:
    """All that comes before it in the model is broken too, and is not to blame."""
    plan = tiny_plan(tmp_path / "run")

    def broken() -> str:
        def spoil(_layer: Any, _inputs: Any, hidden_BTD: torch.Tensor) -> None:
            hidden_BTD.register_hook(lambda grad_BTD: grad_BTD * math.nan)

        _change_models(lambda model: model.lm.model.layers[0].register_forward_hook(spoil))
        return _diverges(plan)

    [message] = run_ranks(1, tmp_path, broken)
    assert "grad_norm nan, first in the gradient of model.layers.0." in message


def _diverges(plan: TrainingPlan) -> str:
    with pytest.raises(SbpError) as error:
        _train(plan, sgd=True)
    return str(error.value)


def test_the_export_is_the_trained_model_with_its_tokenizer(trained: TrainingPlan) -> None:
    model = AutoModelForCausalLM.from_pretrained(trained.out.path("model"))
    tokenizer = AutoTokenizer.from_pretrained(trained.out.path("model"))
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == trained.special[:2]
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight  # tied


def test_the_loss_falls_and_the_held_out_loss_is_on_record(trained: TrainingPlan) -> None:
    rows = rows_of(trained)
    assert rows[-1]["loss_nats"] < rows[0]["loss_nats"]
    assert [row["step"] for row in rows if "validation_nats" in row] == list(range(2, 21, 2))
    assert rows[-1]["tokens"] == 20 * 4 * 32


def test_bfloat16_compute_keeps_float32_weights(tmp_path: Path) -> None:
    exact = tiny_plan(tmp_path / "float32", num_steps=2)
    rounded = tiny_plan(tmp_path / "bfloat16", num_steps=2, dtype="bfloat16")
    for plan in (exact, rounded):
        run_ranks(1, tmp_path, lambda plan=plan: _train(plan))
    assert losses_of(rounded) == pytest.approx(losses_of(exact), rel=5e-3)
    assert all(tensor.dtype == torch.float32 for tensor in weights_of(rounded).values())


@pytest.mark.parametrize("kind", ["selective", "full"])
def test_activations_computed_again_are_the_same_bits(tmp_path: Path, kind: str) -> None:
    kept = tiny_plan(tmp_path / "kept", num_steps=3)
    again = tiny_plan(tmp_path / "again", num_steps=3, activation_checkpointing=kind)
    for plan in (kept, again):
        run_ranks(1, tmp_path, lambda plan=plan: _train(plan))
    assert losses_of(again) == losses_of(kept)
    assert all(torch.equal(tensor, weights_of(again)[name]) for name, tensor in weights_of(kept).items())


def test_compiled_layers_compute_the_same(tmp_path: Path) -> None:
    """Machine code for the plain layers; with activations computed again only the graphs, which is what differs."""
    eager = tiny_plan(tmp_path / "eager", num_steps=2)
    run_ranks(1, tmp_path, lambda: _train(eager))

    def train(plan: TrainingPlan, backend: str) -> None:
        torch.compile = partial(torch.compile, backend=backend)  # type: ignore[assignment]
        loop.is_evaluation = lambda *_: False  # type: ignore[assignment]  # rows without gradients are compiled apart
        _train(plan, stop_after=2)

    for kind, backend in (("none", "inductor"), ("selective", "aot_eager")):
        compiled = tiny_plan(tmp_path / kind, num_steps=2, compile=True, activation_checkpointing=kind)
        run_ranks(1, tmp_path, train, compiled, backend)
        assert losses_of(compiled) == pytest.approx(losses_of(eager), rel=1e-5)


def test_layers_are_compiled_once_however_many_documents_a_batch_has(tmp_path: Path) -> None:
    plan = tiny_plan(tmp_path / "run", num_steps=8, compile=True, micro_batch_rows=4)

    def train() -> set[int]:
        lengths = set()

        def count(_: Any, inputs: tuple[Any, ...]) -> None:
            lengths.add(len(inputs[2].bounds_N1))

        _change_models(lambda model: model.register_forward_pre_hook(count))
        loop.is_evaluation = lambda *_: False  # type: ignore[assignment]  # rows without gradients are compiled apart
        torch.compile = partial(torch.compile, backend="eager")  # type: ignore[assignment]  # how often, not into what
        with torch._dynamo.config.patch(error_on_recompile=True):
            loop.train(plan, stop_after=8)
        return lengths

    [lengths] = run_ranks(1, tmp_path, train)
    assert len(lengths) > 3


def test_the_golden_loss_curve(tmp_path: Path) -> None:
    """Of this configuration as it was when the curve was checked in; write it anew only with a reason."""
    plan = tiny_plan(tmp_path / "run", num_steps=30, z_loss=1e-4, repack=False)
    run_ranks(1, tmp_path, lambda: _train(plan))
    golden = json.loads((Path(__file__).parent / "golden_losses.json").read_text())
    assert losses_of(plan) == pytest.approx(golden, rel=1e-3)  # other CPUs add in another order
    assert golden[-1] < golden[0] - 0.3


def test_each_step_is_measured(trained: TrainingPlan) -> None:
    for row in rows_of(trained):
        assert 0 < row["text_tokens"] <= 4 * 32
        assert 0 < row["mfu"] < 1
        assert 0.01 < row["mem_gib"] < 100
        assert 0 <= row["data_wait_s"] < row["text_tokens"] / row["tokens_per_s"]
    assert rows_of(trained)[-1]["eta_s"] == 0
    assert rows_of(trained)[0]["eta_s"] > 0


def test_the_learning_rate_stays_at_the_peak_and_falls_linearly_at_the_end() -> None:
    cfg = TrainingConfig(batch_rows=1, peak_lr=1.0, final_lr=0.2, warmup_share=0.2, schedule="wsd", decay_share=0.4)
    rates = [lr_at(step, 10, cfg) for step in range(10)]
    assert rates == pytest.approx([0.5, 1, 1, 1, 1, 1, 0.8, 0.6, 0.4, 0.2])


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine() -> None:
    cfg = TrainingConfig(batch_rows=1, peak_lr=1.0, final_lr=0.2, warmup_share=0.2)
    rates = [lr_at(step, 12, cfg) for step in range(12)]
    assert rates[:3] == [0.5, 1.0, 1.0]  # two steps of warm-up, then the top of the cosine
    assert rates[2 + 9 // 3] == pytest.approx(0.2 + 0.8 * 0.75)  # a third of the way: cos 60 degrees is 0.5
    assert rates[-1] == pytest.approx(0.2)


def _overfitting(folder: Path, **settings: Any) -> TrainingPlan:
    """The held-out rows choose, too: documents of random tokens, which are soon known by heart."""
    plan = tiny_plan(folder, num_steps=20, peak_lr=0.05, **settings)
    return replace(plan, development=plan.validation)


def test_the_exported_weights_are_those_of_the_lowest_development_loss(tmp_path: Path) -> None:
    plan = _overfitting(tmp_path / "run")
    run_ranks(1, tmp_path, lambda: _train(plan))
    rows = {row["step"]: row["development_nats"] for row in rows_of(plan) if "development_nats" in row}
    best = min(rows, key=lambda step: rows[step])
    assert best < 20  # it did overfit
    assert read_exported_step(plan.out) == best
    assert sorted(_steps_saved(plan)) == sorted({best, *_steps_saved(plan)[-2:]})
    model = AutoModelForCausalLM.from_pretrained(plan.out.path("model"))
    held_out = [row for shard in (0, 1) for row in read_rows(plan.out, "validation", SEQ_LEN, shard=shard)]
    nll = num_graded = 0.0
    for ids, _ in (document for row in held_out for document in documents_of(row)):
        with torch.inference_mode():
            nll += model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() * (len(ids) - 1)
        num_graded += len(ids) - 1
    assert nll / num_graded == pytest.approx(rows[best], rel=1e-5)


def test_the_last_weights_are_exported_where_they_are_asked_for(tmp_path: Path) -> None:
    plan = _overfitting(tmp_path / "run", checkpoint="last")
    run_ranks(1, tmp_path, lambda: _train(plan))
    assert read_exported_step(plan.out) == 20
    assert min(row.get("development_nats", math.inf) for row in rows_of(plan)) < rows_of(plan)[-1]["development_nats"]


def test_the_best_survives_kills_and_is_chosen_as_without_them(tmp_path: Path) -> None:
    whole = _overfitting(tmp_path / "whole")
    pieces = _overfitting(tmp_path / "pieces", checkpoint_every=3)
    run_ranks(1, tmp_path, lambda: _train(whole))
    for step in (7, 17):
        run_ranks(1, tmp_path, lambda step=step: _die_after(pieces, step))
    run_ranks(1, tmp_path, lambda: _train(pieces))
    assert read_exported_step(pieces.out) == read_exported_step(whole.out) < 17
    assert all(torch.equal(tensor, weights_of(pieces)[name]) for name, tensor in weights_of(whole).items())


def test_a_best_checkpoint_that_is_damaged_is_an_error(tmp_path: Path) -> None:
    plan = _overfitting(tmp_path / "run")
    run_ranks(1, tmp_path, lambda: _train(plan, stop_after=20))
    best = min((row for row in rows_of(plan) if "development_nats" in row), key=lambda row: row["development_nats"])
    Path(plan.out.path(f"checkpoints/step-{int(best['step']):06d}/complete.json")).unlink()

    def refused() -> str:
        with pytest.raises(SbpError) as error:
            _train(plan)
        return str(error.value)

    [message] = run_ranks(1, tmp_path, refused)
    assert message.endswith(f"step-{int(best['step']):06d} was the best checkpoint and is not whole: --redo the stage")
