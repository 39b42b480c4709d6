"""What the judge says of the grid's synthetic text, beside the mined pairs of real documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sbp_ray.artifacts import Artifact
from sbp_ray.config import Config
from sbp_ray.evaluation.judging.rates import Texts, judge_texts
from sbp_ray.evaluation.text_quality.panel import fetch_documents
from sbp_ray.evaluation.text_quality.sampling import sample_rows
from sbp_ray.experiment.grid import Grid, Node, Training
from sbp_ray.experiment.quality import synthetic_users, text_name

_MINED = "mined pairs"


def judged_texts(settings: Config, grid: Grid, trainings: Sequence[Training], store: Artifact) -> dict[str, Any] | None:
    """Rates for one synthesis of each arm, that of its first seed; None without a judge."""
    judge, seed = settings.benchmarks.judge, settings.benchmarks.seed
    if judge is None:
        return None
    texts: dict[str, Texts] = {}
    for key, trained in synthetic_users(grid, trainings).items():
        if text_name(trained) not in texts:
            texts[text_name(trained)] = _beside_d1(grid, grid.nodes[key], judge.sample, seed)
    mined = [node for node in grid.nodes.values() if _is_mined(node)]
    if mined and texts:
        texts[_MINED] = _mined(grid, mined[0], judge.sample, seed)
    return judge_texts(judge, texts, store)


def _beside_d1(grid: Grid, synthetic: Node, sample: int, seed: int) -> Texts:
    columns = ["doc_id", "d1_id", "text"]
    rows = sample_rows(synthetic.artifact, "", key=["doc_id"], columns=columns, limit=sample, seed=seed)
    d1 = fetch_documents(grid.input_of(synthetic, "corpus").artifact, {row["d1_id"] for row in rows})
    return [(d1[row["d1_id"]]["text"], row["text"]) for row in rows]


def _mined(grid: Grid, pairs: Node, sample: int, seed: int) -> Texts:
    ids = ["d1_id", "d2_id"]
    embeddings = grid.input_of(grid.input_of(pairs, "neighbors"), "embeddings")
    rows = sample_rows(pairs.artifact, "train", key=ids, columns=ids, limit=sample, seed=seed)
    wanted = {row[name] for row in rows for name in ids}
    found = fetch_documents(grid.input_of(embeddings, "corpus").artifact, wanted)
    return [(found[row["d1_id"]]["text"], found[row["d2_id"]]["text"]) for row in rows]


def _is_mined(node: Node) -> bool:
    """By an embedder of its own, and there."""
    if node.stage.job != "pair" or node.config.pair.source != "neighbors" or node.config.embed.pooling != "sentence":
        return False
    return node.artifact.manifest() is not None
