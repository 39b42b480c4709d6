"""corpus, pairs, base_lm -> synthesizer: the base LM learns to write d2 given d1

ray job submit --working-dir . -- python jobs/tune.py --config configs/h200.yaml
"""

from sbp_ray.job import Job, Stats, main


def run(job: Job) -> Stats:
    from sbp_ray.stages.tune import tune_synthesizer

    return tune_synthesizer(
        job.config.tune,
        corpus=job.inputs["corpus"],
        pairs=job.inputs["pairs"],
        base_lm=job.inputs["base_lm"],
        out=job.output,
    )


if __name__ == "__main__":
    main("tune", run)
