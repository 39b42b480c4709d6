"""corpus -> base_lm (pretrain.arm=repetition), or corpus, synthetic -> lm (pretrain.arm=sbp)

ray job submit --working-dir . -- python jobs/pretrain.py --config configs/h200.yaml pretrain.arm=sbp
"""

from sbp_ray.job import Job, Stats, main


def run(job: Job) -> Stats:
    from sbp_ray.stages.pretrain import pretrain

    return pretrain(
        job.config.pretrain,
        model=job.config.model,
        mixture=job.config.mixture,
        corpus=job.inputs["corpus"],
        synthetic=job.inputs.get("synthetic"),
        pairs=job.inputs.get("pairs"),
        out=job.output,
    )


if __name__ == "__main__":
    main("pretrain", run)
