"""Where a plan is trained: on Ray Train's workers, or in this process."""

from __future__ import annotations

from sbp_ray.training.export import is_exported
from sbp_ray.training.plan import TrainingPlan


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
