"""text files -> corpus (documents, two splits, a tokenizer)

ray job submit --working-dir . -- python jobs/ingest.py --config configs/h200.yaml
"""

from sbp_ray.job import Job, Stats, main


def run(job: Job) -> Stats:
    from sbp_ray.stages.ingest import ingest_documents

    return ingest_documents(job.config.ingest, decontaminate=job.config.decontaminate, out=job.output)


if __name__ == "__main__":
    main("ingest", run)
