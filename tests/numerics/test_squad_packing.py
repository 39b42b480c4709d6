"""How full the rows of the bundled corpus are, and those of pairs of it."""

import gzip
import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from packed_rows import read_rows, write_examples

from sbp_ray.artifacts import Artifact
from sbp_ray.config_file import load_config
from sbp_ray.text.packing import best_fit
from sbp_ray.text.pair_format import PAIR_MARKS, Example, document_example
from sbp_ray.text.tokenizer import encode_texts, special_ids, train_tokenizer

REPO = Path(__file__).parents[2]
DOCUMENTS = [
    json.loads(line) for line in gzip.decompress((REPO / "data/squad48/docs.jsonl.gz").read_bytes()).splitlines()
]


@pytest.fixture(scope="module")
def examples() -> list[Example]:
    texts = [document["text"] for document in DOCUMENTS]
    tokenizer = train_tokenizer(texts, 4096)
    return [document_example(ids, special_ids(tokenizer)) for ids in encode_texts(tokenizer, texts)]


@pytest.fixture(scope="module")
def shards(examples: list[Example]) -> list[list[Example]]:
    """Four, as configs/squad.yaml has."""
    return [examples[shard::4] for shard in range(4)]


@pytest.fixture(scope="module")
def pair_lengths(examples: list[Example]) -> list[list[int]]:
    """Shard by shard, of each paragraph with three others of its article: nearly all of the pairs are such."""
    length_of = [len(example.input_ids) - 2 for example in examples]  # without <bos> and <eos>
    articles: dict[str, list[int]] = defaultdict(list)
    for number, document in enumerate(DOCUMENTS):
        articles[document["title"]].append(number)
    draw = random.Random(0)
    shards: list[list[int]] = [[] for _ in range(4)]
    for members in articles.values():
        for d1 in members:
            others = draw.sample([number for number in members if number != d1], 3)
            shards[d1 % 4] += [length_of[d1] + length_of[d2] + PAIR_MARKS for d2 in others]
    return shards


@pytest.mark.parametrize("seq_len", [512, 1024, 2048])
def test_at_least_98_percent_of_the_positions_carry_text_and_what_was_split_is_counted(
    new_artifact: Callable[[str], Artifact], shards: list[list[Example]], seq_len: int
) -> None:
    out = new_artifact("lm")
    packed = [
        write_examples(out, "real", examples, seq_len, shard=n, vocab_size=4096) for n, examples in enumerate(shards)
    ]
    positions = sum(stats["rows"] for stats in packed) * seq_len
    lengths = [len(example.input_ids) for shard in shards for example in shard]
    assert sum(stats["tokens"] for stats in packed) == sum(lengths)
    assert sum(lengths) >= 0.98 * positions
    assert sum(stats["splits"] for stats in packed) == sum(length > seq_len for length in lengths)
    rows = [row for n in range(4) for row in read_rows(out, "real", seq_len, shard=n)]
    assert sum((row.document_ids_T >= 0).sum() for row in rows) == sum(lengths)


def test_at_least_98_percent_of_the_tuning_rows_is_text(pair_lengths: list[list[int]]) -> None:
    cfg = load_config(REPO / "configs/squad.yaml").tune
    _, longest = cfg.longest_document()
    kept = [[length for length in shard if length <= longest] for shard in pair_lengths]
    tokens = sum(map(sum, kept))
    positions = {
        width: sum(len(best_fit(np.array(shard), width).ends_R) for shard in kept) * width
        for width in (longest, cfg.seq_len)
    }
    assert tokens >= 0.98 * positions[cfg.seq_len]
    assert tokens < 0.98 * positions[longest]  # which is why a row is longer than any pair
