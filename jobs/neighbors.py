"""embeddings -> neighbors (each document's nearest others)

ray job submit --working-dir . -- python jobs/neighbors.py --config configs/h200.yaml
"""

from sbp_ray.job import Job, Stats, main


def run(job: Job) -> Stats:
    from sbp_ray.stages.neighbors import find_neighbors

    return find_neighbors(job.config.neighbors, embeddings=job.inputs["embeddings"], out=job.output)


if __name__ == "__main__":
    main("neighbors", run)
