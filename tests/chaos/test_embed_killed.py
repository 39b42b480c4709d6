"""jobs/embed.py, its driver and its actors killed at random moments: every document has one vector, made once."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
from job_run import JobRun
from tiny_embedder import make_bert

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.config import EmbedConfig, ForwardResources
from sbp_ray.schema import DOCUMENT
from sbp_ray.stage_table import FOLDERS
from sbp_ray.stages.embed import embed_corpus

pytestmark = pytest.mark.slow

SEED = 7
NUM_SHARDS = 12
NUM_WORKERS = 2
SHARD_ROWS = 250  # some tenths of a second each: slow enough to be caught in the middle
ATTEMPTS = 6


class Strike(NamedTuple):
    """What to kill, and when: a while after so many shards are committed."""

    num_shards: int
    victim: str
    delay_s: float


def plan_strikes(planned: tuple[str, ...]) -> list[Strike]:
    rng = random.Random(SEED)
    moments = sorted(rng.sample(range(1, 2 * NUM_SHARDS - 2), len(planned)))
    victims = rng.sample(planned, len(planned))
    return [Strike(*strike, rng.uniform(0, 0.3)) for strike in zip(moments, victims, strict=True)]


MADE = ("train", "validation")


def write_corpus(corpus: Artifact) -> None:
    rng = random.Random(SEED)
    words = [f"w{number}" for number in range(500)]
    for split in MADE:
        for shard in range(NUM_SHARDS):
            rows = [
                {
                    "doc_id": f"{split[:5]}-{shard:04d}-{row:05d}".encode(),
                    "group": str(row),
                    "text": " ".join(rng.choices(words, k=120)),
                }
                for row in range(SHARD_ROWS if shard else 0)  # the first is empty
            ]
            corpus.write_table(f"{split}/part-{shard:05d}.parquet", pa.Table.from_pylist(rows, DOCUMENT))
    corpus.write_json(STARTED, {"fingerprint": "00c0ffee00c0ffee"})
    corpus.write_json(MANIFEST, {"stats": {"shards": NUM_SHARDS}})


class Run(JobRun):
    """jobs/embed.py on a corpus of random words."""

    def __init__(self, folder: Path) -> None:
        self.corpus, self.out = (Artifact(name, str(folder / FOLDERS[name])) for name in ("corpus", "embeddings"))
        write_corpus(self.corpus)
        resources = {"num_workers": NUM_WORKERS, "num_cpus": 1, "num_threads": 1}
        settings = {"model": make_bert(folder / "model"), "max_tokens": 64, "resources": resources}
        super().__init__(folder, "embed", "WorkOnItems", {"embed": settings, "artifacts": {"corpus": self.corpus.url}})

    def committed(self) -> dict[str, tuple[int, int, bytes]]:
        """Inode, time and content of each committed shard."""
        found = {}
        for split in MADE:
            for name in self.out.files(split, ".parquet"):
                status = Path(self.out.path(name)).stat()
                found[name] = (status.st_ino, status.st_mtime_ns, self.out.read_bytes(name))
        return found


def attempt(run: Run, strikes: list[Strike], kept: dict[str, tuple[int, int, bytes]]) -> int:
    """Run the job until it ends by itself or is killed; strikes that were made are taken from the list."""
    driver = run.start()
    while driver.poll() is None:
        if strikes and sum(len(run.out.files(split, ".parquet")) for split in MADE) >= strikes[0].num_shards:
            time.sleep(strikes[0].delay_s)  # the next shards are somewhere on their way by then
            committed = sorted(run.committed().items(), key=lambda shard: shard[1][1])
            if strikes[0].victim == "actor":  # one may have been killed before it could say what it had committed
                committed = committed[:-NUM_WORKERS]
            kept |= dict(committed)
            if strikes[0].victim == "driver":
                run.kill_driver(driver)
                strikes.pop(0)
            elif actors := run.workers(driver):
                random.Random(SEED).choice(actors).kill()
                strikes.pop(0)
        time.sleep(0.01)  # only how often we look
    return driver.returncode


@pytest.mark.parametrize(
    "planned",
    [("driver", "actor"), pytest.param(("driver", "driver", "actor", "actor"), marks=pytest.mark.long)],
    ids=["2", "4"],
)
def test_killed_at_random_moments_every_document_has_one_vector_made_once(
    tmp_path: Path, planned: tuple[str, ...]
) -> None:
    run, strikes = Run(tmp_path / "run"), plan_strikes(planned)
    kept: dict[str, tuple[int, int, bytes]] = {}
    codes = []
    while not codes or codes[-1] != 0:
        assert len(codes) < ATTEMPTS, run.log.read_text()[-5000:]
        codes.append(attempt(run, strikes, kept))
        assert codes[-1] in (0, 1, -9), run.log.read_text()[-5000:]  # done, one line, or killed by us; no traceback
    assert strikes == []  # each found its victim before the work was done
    assert codes.count(-9) == planned.count("driver")
    assert len(kept) >= plan_strikes(planned)[-1].num_shards

    after = run.committed()
    assert {name: after[name] for name in kept} == kept  # not computed again: same file, same ledger
    for name in after:
        ids = run.corpus.read_table(name, ["doc_id"]).column("doc_id")
        assert run.out.read_table(name, ["doc_id"]).column("doc_id").equals(ids)
        assert run.out.read_stats(name)["documents"] == len(ids)
    assert len(after) == 2 * NUM_SHARDS
    manifest = run.out.manifest()
    assert manifest is not None
    num_documents = (NUM_SHARDS - 1) * SHARD_ROWS
    assert [manifest["stats"][split]["documents"] for split in MADE] == [num_documents] * 2

    undisturbed = Artifact("embeddings", str(tmp_path / "undisturbed"))
    resources = ForwardResources(num_threads=1)
    cfg = EmbedConfig(model=str(run.folder / "model/model"), max_tokens=64, resources=resources)
    stats = embed_corpus(cfg, corpus=run.corpus, out=undisturbed)
    assert stats["train"]["tokens"] == manifest["stats"]["train"]["tokens"]
    for name in after:
        assert run.out.read_table(name).equals(undisturbed.read_table(name))

    assert attempt(run, [], {}) == 0  # a run more finds nothing to do
    assert run.committed() == after
