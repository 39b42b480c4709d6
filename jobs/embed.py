"""corpus -> embeddings (a unit vector for each document)

ray job submit --working-dir . -- python jobs/embed.py --config configs/h200.yaml
"""

from sbp_ray.job import Job, Stats, main


def run(job: Job) -> Stats:
    from sbp_ray.stages.embed import embed_corpus

    return embed_corpus(job.config.embed, corpus=job.inputs["corpus"], out=job.output)


if __name__ == "__main__":
    main("embed", run)
