"""neighbors -> pairs (d1, d2): related, not copies

ray job submit --working-dir . -- python jobs/pair.py --config configs/h200.yaml
"""

from sbp_ray.job import Job, Stats, main


def run(job: Job) -> Stats:
    from sbp_ray.pairing.guide_page import write_guide_page
    from sbp_ray.stages.pair import pair_documents

    stats = pair_documents(job.config.pair, neighbors=job.inputs["neighbors"], out=job.output)
    write_guide_page(job.config.pair, stats["train"]["drops"], corpus=job.inputs["corpus"], out=job.output)
    return stats


if __name__ == "__main__":
    main("pair", run)
