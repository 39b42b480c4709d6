"""jobs/neighbors.py, its driver and its workers killed at random moments: the graph is the same, row by row."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from job_run import JobRun

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.config import NeighborsConfig, Resources
from sbp_ray.schema import DOC_ID, SIGNATURE_BYTES, embedding_schema
from sbp_ray.stage_table import FOLDERS
from sbp_ray.stages.neighbors import find_neighbors

pytestmark = pytest.mark.slow

SEED = 11
NUM_SHARDS = 4
DOCUMENTS = 52_000  # more than the driver searches by itself
DIM = 32
SETTINGS = {"num_neighbors": 10, "worker_gib": 0.033, "recall_queries": 200}  # three groups
ATTEMPTS = 8


def write_embeddings(artifact: Artifact) -> None:
    rng = np.random.default_rng(SEED)
    for split, num in (("train", DOCUMENTS // NUM_SHARDS), ("validation", 100)):
        for shard in range(NUM_SHARDS):
            topics = rng.standard_normal((200, DIM))
            vectors = topics[rng.integers(200, size=num)] + 0.7 * rng.standard_normal((num, DIM))
            vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
            numbers = rng.permutation(num) * NUM_SHARDS + shard
            table = {
                "doc_id": pa.array([bytes.fromhex(f"{number:08x}{number * 7919:024x}") for number in numbers], DOC_ID),
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), DIM),
                "signature": pa.array([rng.bytes(SIGNATURE_BYTES) for _ in range(num)], pa.binary(SIGNATURE_BYTES)),
                "num_shingles": pa.array([100] * num, pa.int32()),
                "content_signature": pa.array([bytes(SIGNATURE_BYTES)] * num, pa.binary(SIGNATURE_BYTES)),
                "num_content_words": pa.array([20] * num, pa.int32()),
                "group_hash": pa.array(range(num), pa.uint64()),
            }
            artifact.write_table(f"{split}/part-{shard:05d}.parquet", pa.table(table, schema=embedding_schema(DIM)))
    artifact.write_json(STARTED, {"fingerprint": "00c0ffee00c0ffee"})
    documents = {"train": {"documents": DOCUMENTS}, "validation": {"documents": 100 * NUM_SHARDS}}
    artifact.write_json(MANIFEST, {"stats": documents})


def files_of(artifact: Artifact) -> int:
    """Files that are committed, those of the search's scratch among them."""
    folder = Path(artifact.path())
    return sum(not path.name.startswith(".") for path in folder.rglob("*.*")) if folder.exists() else 0


@pytest.mark.parametrize(
    "victims",
    [("worker", "driver"), pytest.param(("driver", "worker", "driver", "worker"), marks=pytest.mark.long)],
    ids=["2", "4"],
)
def test_killed_at_random_moments_the_graph_is_the_same(tmp_path: Path, victims: tuple[str, ...]) -> None:
    embeddings = Artifact("embeddings", str(tmp_path / FOLDERS["embeddings"]))
    out = Artifact("neighbors", str(tmp_path / FOLDERS["neighbors"]))
    write_embeddings(embeddings)
    run = JobRun(
        tmp_path, "neighbors", "work_on_items", {"neighbors": SETTINGS, "artifacts": {"embeddings": embeddings.url}}
    )
    rng = random.Random(SEED)
    moments = sorted(rng.sample(range(3, 24), len(victims)))
    strikes = list(zip(moments, victims, strict=True))
    codes: list[int] = []
    while not codes or codes[-1] != 0:
        assert len(codes) < ATTEMPTS, run.log.read_text()[-5000:]
        driver = run.start()
        while driver.poll() is None:
            if strikes and files_of(out) >= strikes[0][0]:
                time.sleep(rng.uniform(0, 0.2))
                if strikes[0][1] == "driver":
                    run.kill_driver(driver)
                    strikes.pop(0)
                elif workers := run.workers(driver):
                    rng.choice(workers).kill()
                    strikes.pop(0)
            time.sleep(0.01)  # only how often we look
        codes.append(driver.returncode)
        assert codes[-1] in (0, -9), run.log.read_text()[-5000:]  # done, or killed by us
    assert strikes == []
    assert codes.count(-9) == victims.count("driver")

    undisturbed = Artifact("neighbors", str(tmp_path / "undisturbed"))
    cfg = NeighborsConfig(**SETTINGS, resources=Resources(num_threads=1))
    expected = find_neighbors(cfg, embeddings=embeddings, out=undisturbed)
    manifest = out.manifest()
    assert manifest is not None
    assert expected["train"]["recall"]["groups"] > 1
    assert manifest["stats"]["train"] == expected["train"]
    for split in ("train", "validation"):
        names = undisturbed.files(split, ".parquet")
        assert len(names) == NUM_SHARDS
        for name in names:
            assert out.read_table(name).equals(undisturbed.read_table(name))
    assert not out.exists("scratch")
