"""What the judge says of every synthesis of the grid, beside the mined pairs of real documents."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config
from sbp_ray.evaluation.draws import draw_rows
from sbp_ray.evaluation.judging.rates import judge_texts
from sbp_ray.experiment.grid import Grid, Node, Training
from sbp_ray.schema import shard_of
from sbp_ray.shards import shard_name

_MINED = "mined pairs, real"


def judged_syntheses(
    settings: Config, grid: Grid, trainings: Sequence[Training], store: Artifact
) -> dict[str, Any] | None:
    """Rates for the text of each arm's first seed; None without a judge."""
    judge, seed = settings.benchmarks.judge, settings.benchmarks.seed
    if judge is None:
        return None
    texts: dict[str, list[tuple[str | None, str]]] = {}
    for node, names in _syntheses(grid, trainings).items():
        synthetic = grid.nodes[node]
        corpus = grid.input_of(synthetic, "corpus").artifact
        columns = ["doc_id", "d1_id", "text"]
        rows = draw_rows(synthetic.artifact, "", key=["doc_id"], columns=columns, limit=judge.sample, seed=seed)
        d1 = texts_of(corpus, {row["d1_id"] for row in rows})
        texts[", ".join(names)] = [(d1[row["d1_id"]], row["text"]) for row in rows]
    pairs = next((node for node in grid.nodes.values() if _is_mined(node)), None)
    if pairs is not None:
        corpus = _corpus_of_pairs(grid, pairs)
        ids = ["d1_id", "d2_id"]
        rows = draw_rows(pairs.artifact, "train", key=ids, columns=ids, limit=judge.sample, seed=seed)
        found = texts_of(corpus, {row[name] for row in rows for name in ids})
        texts[_MINED] = [(found[row["d1_id"]], found[row["d2_id"]]) for row in rows]
    return judge_texts(judge, texts, store)


def _syntheses(grid: Grid, trainings: Sequence[Training]) -> dict[str, list[str]]:
    """The arms that read each synthesis, those of the first seed that each arm has."""
    found: dict[str, list[str]] = {}
    seen = set()
    for training in trainings:
        if training.share is not None and training.name not in seen:
            seen.add(training.name)
            key = _key_of(grid, grid.input_of(grid.nodes[training.model], "synthetic"))
            found.setdefault(key, []).append(training.name)
    return found


def _key_of(grid: Grid, wanted: Node) -> str:
    return next(key for key, node in grid.nodes.items() if node is wanted)


def _is_mined(node: Node) -> bool:
    is_made = node.stage.job == "pair" and node.artifact.manifest() is not None
    return is_made and node.config.pair.source == "neighbors" and node.config.embed.pooling == "sentence"


def _corpus_of_pairs(grid: Grid, pairs: Node) -> Artifact:
    embeddings = grid.input_of(grid.input_of(pairs, "neighbors"), "embeddings")
    return grid.input_of(embeddings, "corpus").artifact


def texts_of(corpus: Artifact, doc_ids: set[str]) -> dict[str, str]:
    """Texts of documents of the train split by their ids."""
    num_shards = len(corpus.files("train", ".parquet"))
    wanted: dict[str, list[str]] = defaultdict(list)
    for doc_id in sorted(doc_ids):
        wanted[shard_name("train", shard_of(doc_id, num_shards))].append(doc_id)
    found: dict[str, str] = {}
    for name, ids in wanted.items():
        table = corpus.read_table(name, columns=["doc_id", "text"])
        table = table.filter(pc.is_in(table["doc_id"], value_set=pa.array(ids, pa.string())))
        found |= dict(zip(table["doc_id"].to_pylist(), table["text"].to_pylist(), strict=True))
    return found
