"""Copies of corpus documents and of earlier synthetic ones, found through buckets by all shards together."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from merged_shards import Generation
from worked_on import WorkedOn

from sbp_ray.artifacts import Artifact
from sbp_ray.errors import SbpError
from sbp_ray.generation import deduplication
from sbp_ray.generation.merging import merged_name, part_name
from sbp_ray.shards import shard_name
from sbp_ray.text.copies import band_width, copies_of_earlier, missed_share

TEXTS = {name: " ".join(f"{name}{number}" for number in range(60)) for name in "abcdefx"}
ALTERED = {name: f"{text} and more" for name, text in TEXTS.items()}  # 48 shingles of 13 words, of 50
SHARDS = [["a", "b"], ["c", "a", "d"], ["e", "d", "f", "x"]]
KEPT = [["a", "b"], ["c", "d"], ["e", "f"]]
"""x copies a corpus document, the others an earlier shard's."""

pytestmark = pytest.mark.usefixtures("in_process")


def three_shards(folder: Path) -> Generation:
    texts = [[(ALTERED if shard == 2 else TEXTS)[name] for name in names] for shard, names in enumerate(SHARDS)]
    return Generation(str(folder), texts, {0: [TEXTS["x"]], 1: ["d1 of shard 0, " * 20]})


@pytest.mark.parametrize("bucket_bytes", [1 << 28, 2000])  # one bucket, and some fifty
def test_each_text_is_kept_where_it_is_first_and_counts_lose_what_was_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket_bytes: int
) -> None:
    monkeypatch.setattr(deduplication, "_BUCKET_BYTES", bucket_bytes)
    generation = three_shards(tmp_path)
    before = generation.out.read_stats(merged_name(1))
    assert (before["documents"], before["tokens"], before["drops"]) == (3, 33, {})
    generation.drop_copies()
    assert generation.kept() == KEPT
    after = [generation.out.read_stats(part_name(shard)) for shard in range(3)]
    assert (after[1]["documents"], after[1]["tokens"]) == (2, 22)  # of 10, 11 and 12 tokens that of 11 goes
    assert [part["drops"] for part in after] == [
        {},
        {"copy_of_synthetic": 1},
        {"copy_of_synthetic": 1, "copy_of_corpus": 1},
    ]
    # Of the three d1 one copies another document of the corpus, which lies in another shard.
    assert [part["real_text"]["drops"]["copy_of_corpus"] for part in after] == [1, 0, 0]
    assert not generation.out.exists("scratch")


@pytest.mark.parametrize("survivors", range(10))
def test_a_killed_search_for_copies_goes_on_and_ends_alike(
    tmp_path: Path, in_process: WorkedOn, survivors: int
) -> None:
    """Ten steps with one bucket: bands of three shards of the corpus and three merged ones, one bucket, three parts."""
    generation = three_shards(tmp_path)
    in_process.interrupt_after(survivors)
    with pytest.raises(KeyboardInterrupt):
        generation.drop_copies()
    generation.drop_copies()
    assert len(in_process) == 10  # nothing twice
    assert generation.kept() == KEPT
    assert generation.out.read_stats(part_name(1))["drops"] == {"copy_of_synthetic": 1}


def test_a_shard_without_samples_becomes_a_part_without_rows(tmp_path: Path) -> None:
    generation = Generation(str(tmp_path), [[TEXTS["a"]], [], [TEXTS["a"], TEXTS["b"]]], {})
    generation.drop_copies()
    assert generation.kept() == [["a"], [], ["b"]]
    stats = generation.out.read_stats(part_name(1))
    assert (stats["d1"], stats["documents"], stats["tokens"], stats["drops"]) == (0, 0, 0, {})


def test_a_shard_that_is_made_again_loses_its_copies_again(tmp_path: Path) -> None:
    generation = three_shards(tmp_path)
    generation.drop_copies()
    generation.out.fs.delete_file(generation.out.path(part_name(1)))
    generation.merge(1, [TEXTS[name] for name in SHARDS[1]])
    generation.drop_copies()
    assert generation.kept() == KEPT


def test_a_shard_of_the_embeddings_that_has_gone_is_named(tmp_path: Path) -> None:
    generation = three_shards(tmp_path)
    generation.embeddings.fs.delete_file(generation.embeddings.path(shard_name("train", 2)))
    with pytest.raises(SbpError, match=r"train/part-00002\.parquet is not there: bring it back"):
        generation.drop_copies()


def test_twice_as_many_shards_are_read_twice_as_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard of the corpus and each merged shard's signatures are read once, however many others there are."""
    reads: Counter[str] = Counter()
    read_table = Artifact.read_table

    def counting(self: Artifact, name: str, columns: list[str] | None = None) -> pa.Table:
        table = read_table(self, name, columns)
        reads["files"] += 1
        reads["rows"] += len(table)
        return table

    monkeypatch.setattr(Artifact, "read_table", counting)
    rows_in_buckets = 0
    read_bucket = deduplication.read_bucket

    def counting_bucket(*arguments: Any) -> pa.Table:
        nonlocal rows_in_buckets
        table = read_bucket(*arguments)
        rows_in_buckets += len(table)
        return table

    monkeypatch.setattr(deduplication, "read_bucket", counting_bucket)
    found = {}
    for num_shards in (4, 8):
        texts = [[" ".join(f"{s}-{n}-{word}" for word in range(30)) for n in range(5)] for s in range(num_shards)]
        generation = Generation(f"{tmp_path}/{num_shards}", texts, {})
        reads.clear()
        rows_in_buckets = 0
        generation.drop_copies()
        found[num_shards] = (reads["files"], reads["rows"], rows_in_buckets)
    assert found[4] == (4 + 4, 4 * (1 + 5), 32 * 4 * (1 + 5))
    assert found[8] == tuple(2 * number for number in found[4])


def test_bands_find_practically_all_pairs_at_the_limit() -> None:
    """At J = 0.8 a byte agrees with a chance of 0.8 + 0.2 / 256 = 0.80078, 8 of them with 0.16908, and none of 32 bands
    with 0.83092^32 = 0.00267."""
    assert missed_share(0.8, 8) == pytest.approx(0.00267, abs=2e-5)
    assert missed_share(0.9, 8) < 2e-8
    assert missed_share(0.6, 4) == pytest.approx(0.00012, abs=2e-5)
    assert [band_width(limit) for limit in (0.9, 0.8, 0.7, 0.6, 0.4)] == [8, 8, 4, 4, 2]
    assert all(missed_share(limit / 100, band_width(limit / 100)) <= 0.003 for limit in range(20, 100))


def test_a_document_is_compared_with_a_few_of_those_that_share_its_band_not_only_the_nearest() -> None:
    """Of three documents that agree in a band the first and the third are alike; the second lies between them."""
    rng = np.random.default_rng(0)
    signature_MH = rng.integers(0, 256, (4, 256), np.uint8)
    signature_MH[:, :8] = 7
    signature_MH[3] = signature_MH[1]
    signature_MH[3, 8:16] += 1
    assert copies_of_earlier(signature_MH, 0.8).tolist() == [False, False, False, True]
