"""What the last stage would refuse after hours, refused before anything runs."""

from __future__ import annotations

from sbp_ray.bios.truth import read_truth
from sbp_ray.config import Config
from sbp_ray.evaluation.benchmarks.question_sets import choose_questions
from sbp_ray.evaluation.found_elsewhere import read_found_elsewhere
from sbp_ray.evaluation.likelihood.closed_book import check_questions


def check_evaluation(settings: Config, *, reaches_judge: bool = True, has_benchmarks: bool = True) -> None:
    """Read everything that models and texts will be measured by.

    Args:
        reaches_judge: asks the judge for a sign of life; without it SciPy is not needed.
        has_benchmarks: reads their questions too, for which lm-eval is needed.

    Raises:
        SbpError: a file of questions, of the truth or of another answer is missing or malformed; a benchmark is
            unknown; the judge cannot be reached.
    """
    check_questions(settings.eval)
    if settings.eval.truth is not None:
        read_truth(settings.eval.truth)
    read_found_elsewhere(settings.eval)
    if has_benchmarks:
        choose_questions(settings)
    if reaches_judge:
        from sbp_ray.evaluation.judging.rates import require_judge

        require_judge(settings.benchmarks.judge)
