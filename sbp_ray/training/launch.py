"""Where a plan is trained: on Ray Train's workers, or in this process."""

from __future__ import annotations

import logging

from sbp_ray.shards import Stats
from sbp_ray.training.dtype_choice import read_settled, with_dtype
from sbp_ray.training.export import is_exported, read_exported_step
from sbp_ray.training.export_check import check_export
from sbp_ray.training.journal import count_attempts, read_row
from sbp_ray.training.packed import Packed, count_mixture
from sbp_ray.training.training_plan import TrainingPlan

logger = logging.getLogger(__name__)


def run_plan(plan: TrainingPlan, packed: dict[str, Packed]) -> Stats:
    """Train, and check the export; returns what every training stage reports.

    Args:
        packed: the rows of each source, as they lie in `plan.out`.

    Raises:
        SbpError: see `fit`; or the export was refused.
    """
    cfg = plan.config
    mixed = count_mixture(plan.mixture, packed, cfg.seq_len)
    sources = ", ".join(
        f"{name}: {counts['rows']:,} rows, {counts['passes']:.2f} passes" for name, counts in mixed.items()
    )
    steps = f"{plan.num_steps} steps x {cfg.batch_rows} rows x {cfg.seq_len} tokens"
    logger.info(f"{plan.stage} | {steps} | {sources}")
    fit(plan)
    settled = read_settled(plan)
    return {
        "steps": plan.num_steps,
        "positions": plan.num_steps * cfg.batch_rows * cfg.seq_len,
        "mixture": mixed,
        "packing": {name: source.stats for name, source in packed.items()},
        "final": read_row(plan.out, plan.num_steps),
        "exported": read_row(plan.out, read_exported_step(plan.out)),
        **count_attempts(plan.out),
        "computed_in": settled,
        "export": check_export(plan.stage, with_dtype(plan, settled["dtype"]).config, plan.out),
    }


def fit(plan: TrainingPlan) -> None:
    """Run the plan, from its newest checkpoint, until `model/` is written.

    Raises:
        SbpError: the training diverged, something could not be written, or workers died, or were taken away, more
            often than `resources` allows.
        ray.train.TrainingFailedError: an error of ours.
    """
    if is_exported(plan.out):
        return
    if plan.config.resources.in_process:
        _fit_here(plan)
    else:
        from sbp_ray.training.worker import fit_on_cluster  # Ray

        fit_on_cluster(plan)
    assert is_exported(plan.out), f"{plan.stage} ended without {plan.out.url}/model"


def _fit_here(plan: TrainingPlan) -> None:
    import torch
    from transformers.utils.logging import disable_progress_bar

    from sbp_ray.training.loop import train

    disable_progress_bar()
    if plan.config.resources.num_threads:
        torch.set_num_threads(plan.config.resources.num_threads)
    train(plan)
