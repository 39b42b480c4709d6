"""A run directory on S3, and what an object store does wrong: nothing is lost, and nothing is there twice.

A real S3 server, and stages in this process. `small_run` makes the files that stages make: shards, routed files and
scratch, segments that are merged, buckets of copies.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from merged_shards import Generation
from s3_server import BUCKET, EXPIRED, INTERNAL_ERROR, SLOW_DOWN, Cut, Fault, FaultyStore, Refused, s3_server

from sbp_ray import object_stores
from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.cli import exit_with
from sbp_ray.config import DecontaminateConfig, IngestConfig, NeighborsConfig, PairConfig
from sbp_ray.errors import SbpError
from sbp_ray.run_lock import is_held, locked
from sbp_ray.schema import SPLITS, embedding_schema
from sbp_ray.stages.ingest import ingest_documents
from sbp_ray.stages.neighbors import find_neighbors
from sbp_ray.stages.pair import pair_documents
from sbp_ray.text.minhash import document_signature

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("in_process")]

NUM_SHARDS = 2
DIM = 8


@pytest.fixture(scope="module")
def store() -> Iterator[FaultyStore]:
    with s3_server() as running, pytest.MonkeyPatch.context() as environment:
        for name, value in running.environment.items():
            environment.setenv(name, value)
        yield running


@pytest.fixture(autouse=True)
def without_faults(store: FaultyStore) -> None:
    store.fault, store.max_keys = lambda number, method, path: None, 1000
    store.num_requests = store.num_faults = 0
    object_stores._open_store.cache_clear()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Input files."""
    folder, draw = tmp_path_factory.mktemp("source"), random.Random(0)
    words = [f"word{number}" for number in range(60)]
    for name in "ab":
        rows = [{"text": " ".join(draw.choices(words, k=30)), "topic": f"{name}{n // 3}"} for n in range(45)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(folder / "*.jsonl")


def small_run(root: str, source: str) -> None:
    """From text to pairs, with vectors by hand, and the end of a synthesis, in the run directory `root`.

    The synthesis goes on only where it has not begun: its shards are merged here whether they are or not.
    """
    corpus, embeddings, neighbors, pairs = (
        Artifact(noun, f"{root}/{noun}") for noun in ("corpus", "embeddings", "neighbors", "pairs")
    )
    ingest = IngestConfig(
        input=(source,), group_column="topic", validation_share=0.2, num_shards=NUM_SHARDS, vocab_size=300
    )
    corpus.write_json_once(STARTED, lambda: {"fingerprint": uuid.uuid4().hex})  # of which nodes keep local copies
    ingest_documents(ingest, decontaminate=DecontaminateConfig(), out=corpus)
    for split in SPLITS:
        for name in corpus.files(split, ".parquet"):
            embeddings.write_table(name, vectors_of(corpus.read_table(name, ["doc_id", "text"])))
    find_neighbors(NeighborsConfig(num_neighbors=5), embeddings=embeddings, out=neighbors)
    pair_documents(PairConfig(min_cosine=0.0, max_cosine=1.0), neighbors=neighbors, out=pairs)
    texts = [[" ".join(f"{shard}{sample}{n}" for n in range(60)) for sample in range(3)] for shard in range(2)]
    generation = Generation(f"{root}/generation", [*texts, texts[0]], {})
    generation.drop_copies()
    assert [len(kept) for kept in generation.kept()] == [3, 3, 0]


def vectors_of(documents: pa.Table) -> pa.Table:
    """A vector of each document's id."""
    rows = []
    for doc_id, text in zip(*(documents[name].to_pylist() for name in ("doc_id", "text")), strict=True):
        vector = np.random.default_rng(list(doc_id)).normal(size=DIM)
        signature = document_signature(text, 13)[0].tobytes()
        rows.append(
            {
                "doc_id": doc_id, "vector": (vector / np.linalg.norm(vector)).astype(np.float16),
                "signature": signature, "num_shingles": 18, "content_signature": signature, "num_content_words": 18,
                "group_hash": doc_id[0],
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, embedding_schema(DIM))


def contents(root: str) -> dict[str, bytes]:
    """Every file that lies in a run directory, but for what the test itself names it by."""
    fs, path = object_stores.open_file_system(root)
    infos = fs.get_file_info(pafs.FileSelector(path, recursive=True))
    files = {info.path.removeprefix(f"{path}/"): info.path for info in infos if info.type == pafs.FileType.File}
    return {name: fs.open_input_file(where).read() for name, where in files.items() if not name.endswith(STARTED)}


@pytest.fixture(scope="module")
def expected(source: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run that nothing disturbs makes in a folder."""
    root = str(tmp_path_factory.mktemp("run"))
    small_run(root, source)
    return contents(root)


def test_one_job_at_a_time_holds_a_run_directory(store: FaultyStore) -> None:
    root = f"s3://{BUCKET}/held"
    for _ in range(2):
        with locked(root):
            assert is_held(root)
            with pytest.raises(SbpError, match=f"^{root} is in use by process"), locked(root):
                pass
        assert is_held(root) is False


def now_and_then(share: float) -> Callable[[int, str, str], Fault]:
    """Such a share of requests fails, and of the reads as many break off."""
    draw = random.Random(3)

    def fault(number: int, method: str, path: str) -> Fault:
        if draw.random() < share:
            return draw.choice((SLOW_DOWN, INTERNAL_ERROR))
        return Cut() if method == "GET" and draw.random() < share else None

    return fault


def away_for(seconds: float, after: int) -> Callable[[int, str, str], Fault]:
    """All requests fail from one on, until so much time has passed."""
    began: list[float] = []

    def fault(number: int, method: str, path: str) -> Fault:
        if number <= after:
            return None
        began.append(time.monotonic())
        return SLOW_DOWN if began[-1] - began[0] < seconds else None

    return fault


def test_requests_that_fail_now_and_then_and_listings_of_three_names_change_nothing(
    store: FaultyStore, source: str, expected: dict[str, bytes]
) -> None:
    """More than a hundred fail, after which a process might have no retries left."""
    store.fault, store.max_keys = now_and_then(0.05), 3
    small_run(f"s3://{BUCKET}/faulty", source)
    assert store.num_faults > 100
    store.fault = lambda number, method, path: None
    assert contents(f"s3://{BUCKET}/faulty") == expected


@pytest.mark.parametrize("seconds", [5, pytest.param(30, marks=pytest.mark.long)])
def test_a_store_that_is_away_for_some_seconds_is_waited_for(
    store: FaultyStore, source: str, expected: dict[str, bytes], seconds: float
) -> None:
    store.fault = away_for(seconds, after=400)
    small_run(f"s3://{BUCKET}/away-{seconds}", source)
    assert store.num_faults > 2
    assert contents(f"s3://{BUCKET}/away-{seconds}") == expected


@pytest.mark.parametrize(
    ("fault", "after"),
    [
        (EXPIRED, 700),
        pytest.param(EXPIRED, 100, marks=pytest.mark.long),
        pytest.param(INTERNAL_ERROR, 400, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_a_run_that_the_store_stops_says_so_in_one_line_and_goes_on_when_it_is_back(
    store: FaultyStore,
    source: str,
    expected: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault: Refused,
    after: int,
) -> None:
    monkeypatch.setattr(object_stores, "_RETRIES", 2)  # it gives up within seconds
    root = f"s3://{BUCKET}/{fault.code}-{after}"
    store.fault = lambda number, method, path: fault if number > after else None
    with pytest.raises(SystemExit) as ended:
        exit_with(lambda: small_run(root, source))
    assert ended.value.code == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.endswith("see to the store and to its credentials, and run the same command again to go on")
    store.fault = lambda number, method, path: None
    small_run(root, source)
    assert contents(root) == expected
