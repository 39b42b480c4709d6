"""neighbors -> pairs (d1, d2): related, not copies

ray job submit --working-dir . -- python jobs/pair.py --config configs/h200.yaml
"""

from sbp_ray.job import Job, Stats, main


def run(job: Job) -> Stats:
    from sbp_ray.stages.pair import pair_documents

    return pair_documents(job.config.pair, neighbors=job.inputs["neighbors"], out=job.output)


if __name__ == "__main__":
    main("pair", run)
