"""How full the rows of the bundled corpus are."""

import gzip
import json
from pathlib import Path

import pytest

from sbp_ray.text.packing import pack_examples
from sbp_ray.text.pair_format import document_example
from sbp_ray.text.tokenizer import encode_texts, special_ids, train_tokenizer

DOCUMENTS = Path(__file__).parents[2] / "data/squad48/docs.jsonl.gz"


@pytest.fixture(scope="module")
def shards() -> list[list]:
    """Four, as the demo has."""
    texts = [json.loads(line)["text"] for line in gzip.decompress(DOCUMENTS.read_bytes()).splitlines()]
    tokenizer = train_tokenizer(texts, 4096)
    examples = [document_example(ids, special_ids(tokenizer)) for ids in encode_texts(tokenizer, texts)]
    return [examples[shard::4] for shard in range(4)]


@pytest.mark.parametrize("seq_len", [512, 1024, 2048])
def test_at_least_98_percent_of_the_positions_carry_text_and_what_was_split_is_counted(
    shards: list[list], seq_len: int
) -> None:
    packed = [pack_examples(shard, seq_len) for shard in shards]
    positions = sum(stats["rows"] for _, stats in packed) * seq_len
    lengths = [len(example.input_ids) for shard in shards for example in shard]
    assert sum(stats["tokens"] for _, stats in packed) == sum(lengths)
    assert sum(lengths) >= 0.98 * positions
    assert sum(stats["splits"] for _, stats in packed) == sum(length > seq_len for length in lengths)
    carried = sum(id_ >= 0 for rows, _ in packed for row in rows["document_ids"].to_pylist() for id_ in row)
    assert carried == sum(lengths)
