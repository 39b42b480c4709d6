"""corpus, embeddings, synthesizer -> synthetic: a new document for each draw of d1

ray job submit --working-dir . -- python jobs/synthesize.py --config configs/h200.yaml
"""

from sbp_ray.job import Job, Stats, main


def run(job: Job) -> Stats:
    from sbp_ray.stages.synthesize import synthesize_documents

    return synthesize_documents(
        job.config.synthesize,
        engine=job.config.engine,
        decontaminate=job.config.decontaminate,
        shingle_tokens=job.config.embed.shingle_tokens,
        corpus=job.inputs["corpus"],
        embeddings=job.inputs["embeddings"],
        synthesizer=job.inputs.get("synthesizer"),
        pairs=job.inputs.get("pairs"),
        out=job.output,
    )


if __name__ == "__main__":
    main("synthesize", run)
