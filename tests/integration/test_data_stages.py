"""ingest, embed, neighbors and pair on Ray, with the real embedder."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from sbp_ray import steps
from sbp_ray.artifacts import Artifact
from sbp_ray.config import (
    DecontaminateConfig,
    EmbedConfig,
    ForwardResources,
    IngestConfig,
    NeighborsConfig,
    PairConfig,
    Resources,
)
from sbp_ray.errors import SbpError
from sbp_ray.schema import SPLITS
from sbp_ray.stages.embed import embed_corpus
from sbp_ray.stages.ingest import ingest_documents
from sbp_ray.stages.neighbors import find_neighbors
from sbp_ray.stages.pair import pair_documents

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("local_ray")]

DOCUMENTS = Path(__file__).parents[2] / "data/squad48/docs.jsonl.gz"
NUM_ARTICLES = 6


def write_sample(path: Path) -> None:
    """The first 10 paragraphs of each of 6 articles, and three bad rows."""
    with gzip.open(DOCUMENTS, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    titles = list(dict.fromkeys(row["title"] for row in rows))[:NUM_ARTICLES]
    chosen = [row for title in titles for row in [row for row in rows if row["title"] == title][:10]]
    lines = [json.dumps({"text": row["text"], "title": row["title"]}) for row in chosen]
    (path / "a.jsonl").write_text("\n".join([*lines[:30], '{"text": "cut', '{"text": 1}']), encoding="utf-8")
    (path / "b.jsonl").write_text("\n".join([*lines[30:], lines[0], '{"text": ""}']), encoding="utf-8")


def run_stages(source: Path, root: Path, num_workers: int) -> dict[str, Any]:
    resources = Resources(num_workers=num_workers, num_cpus=0.5, num_threads=1)
    embed = EmbedConfig(max_tokens=64, resources=ForwardResources(**resources.model_dump()))
    corpus, embeddings, neighbors, pairs = (
        Artifact(name, str(root / name)) for name in ("corpus", "embeddings", "neighbors", "pairs")
    )
    ingest = IngestConfig(
        input=(str(source / "*.jsonl"),),
        group_column="title",
        validation_share=0.3,
        num_shards=2,
        vocab_size=600,
        max_bad_share=0.1,
        resources=resources,
    )
    return {
        "ingest": ingest_documents(ingest, decontaminate=DecontaminateConfig(), out=corpus),
        "embed": embed_corpus(embed, corpus=corpus, out=embeddings),
        "neighbors": find_neighbors(
            NeighborsConfig(num_neighbors=8, resources=resources), embeddings=embeddings, out=neighbors
        ),
        "pair": pair_documents(PairConfig(min_cosine=0.45, resources=resources), neighbors=neighbors, out=pairs),
    }


def digests(root: Path) -> dict[str, tuple[int, str]]:
    """Time of writing and content of every file."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the input and a finished run, and the run's stats."""
    folder = tmp_path_factory.mktemp("data")
    write_sample(folder)
    return folder, run_stages(folder, folder / "run", num_workers=1)


def test_from_text_to_pairs(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, stats = finished
    assert stats["ingest"]["rows"] == 64
    assert stats["ingest"]["documents"] == 60
    assert stats["ingest"]["drops"] == {"broken_json": 1, "text_not_a_string": 1, "empty": 1, "exact_duplicate": 1}
    assert sum(stats["ingest"][split]["groups"] for split in SPLITS) == NUM_ARTICLES
    assert stats["embed"]["documents"] == 60
    assert stats["neighbors"]["train"]["neighbors"] == 8 * stats["ingest"]["train"]["documents"]
    assert stats["pair"]["train"]["pairs"] > 50
    assert stats["pair"]["train"]["same_group_share"] > 0.9  # by chance it would be 9 of 39
    pairs = Artifact("pairs", str(folder / "run/pairs"))
    for split in SPLITS:
        rows = [row for name in pairs.files(split) for row in pairs.read_table(name).to_pylist()]
        directed = {(row["d1_id"], row["d2_id"]) for row in rows}
        assert directed == {(d2, d1) for d1, d2 in directed}


def test_a_second_run_does_nothing(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, stats = finished
    before = digests(folder / "run")
    assert run_stages(folder, folder / "run", num_workers=1) == stats
    assert digests(folder / "run") == before


def test_the_result_is_the_same_with_more_workers(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = finished
    shutil.copytree(folder / "run/embeddings", folder / "run2/embeddings")  # the slow part
    run_stages(folder, folder / "run2", num_workers=2)
    one, two = ({name: content for name, (_, content) in digests(folder / run).items()} for run in ("run", "run2"))
    assert one == two


def test_a_mistake_in_a_worker_reaches_the_user_as_one_line(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('[{"text": "x"}]')
    cfg = IngestConfig(input=(str(tmp_path / "in.jsonl"),))
    with pytest.raises(SbpError) as error:
        ingest_documents(cfg, decontaminate=DecontaminateConfig(), out=Artifact("corpus", str(tmp_path / "corpus")))
    assert str(error.value).startswith(f"{tmp_path}/in.jsonl: is one JSON array: write a line for each")


class Dying:
    """Takes its process with it."""

    def __call__(self, item: dict[str, int]) -> dict[str, int]:
        os._exit(1)


def test_an_item_that_kills_every_actor_ends_the_step_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps, "ACTOR_RETRIES", 1)
    step = steps.Step("dying", Dying, (), [{"shard": 0}], lambda item: "a/0", keeps_worker=True)
    with pytest.raises(
        SbpError, match=r"^dying: the processes that worked on one of its shards have died: see Ray's logs"
    ):
        steps.run_steps(Artifact("any", str(tmp_path)), [step], Resources(num_workers=1, num_cpus=0.5))
