"""everything -> report: what both arms learned, and what the synthetic text is like

ray job submit --working-dir . -- python jobs/eval.py --config configs/h200.yaml
"""

from sbp_ray.job import Job, Stats, main


def run(job: Job) -> Stats:
    from sbp_ray.stages.eval import evaluate_run

    return evaluate_run(job.node, out=job.output)


if __name__ == "__main__":
    main("eval", run)
