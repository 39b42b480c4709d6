"""Artifacts as the stages leave them, made by hand: 40 documents, and what was written for some of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from sbp_ray.artifacts import STARTED, Artifact
from sbp_ray.config import Config
from sbp_ray.nodes import Node, locate
from sbp_ray.schema import DOCUMENT, SYNTHETIC, embedding_schema, shard_of
from sbp_ray.shards import shard_name
from sbp_ray.stage_table import STAGES
from sbp_ray.text.minhash import document_signature
from sbp_ray.text.tokenizer import encode_texts, train_tokenizer

NUM_SHARDS = 2
DIM = 384  # of the packaged embedder
WORDS = ["river", "stone", "bridge", "castle", "winter", "army", "market", "music", "garden", "train", "glass"]
Row = dict[str, Any]


def write_corpus(corpus: Artifact, embeddings: Artifact) -> tuple[dict[str, list[Row]], Any]:
    """32 train documents of some 32 words and 8 held-out ones of 92, with random vectors; rows by split, tokenizer."""
    generator = np.random.default_rng(0)
    texts = {
        "train": [" ".join(generator.choice(WORDS, 30)) + f" number {i}." for i in range(32)],
        "validation": [" ".join(generator.choice(WORDS, 90)) + f" case {i}." for i in range(8)],
    }
    tokenizer = train_tokenizer([*texts["train"], *texts["validation"]], 320)
    tokenizer.save_pretrained(corpus.path("tokenizer"))
    documents: dict[str, list[Row]] = {}
    for split, found in texts.items():
        documents[split] = [
            {
                "doc_id": bytes.fromhex(f"{i * 7919 % 2**32:08x}{split.encode().hex():>024}"),
                "group": f"{split}-{i % 4}",
                "text": text,
                "input_ids": ids,
            }
            for i, (text, ids) in enumerate(zip(found, encode_texts(tokenizer, found), strict=True))
        ]
        for shard in range(NUM_SHARDS):
            rows = [row for row in documents[split] if shard_of(row["doc_id"], NUM_SHARDS) == shard]
            corpus.write_table(shard_name(split, shard), pa.Table.from_pylist(rows, DOCUMENT))
            vectors = generator.normal(size=(len(rows), DIM))
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            embedded = [
                {
                    "doc_id": row["doc_id"],
                    "vector": vector.astype(np.float16),
                    "signature": document_signature(row["text"], 13)[0].tobytes(),
                }
                for row, vector in zip(rows, vectors, strict=True)
            ]
            embeddings.write_table(shard_name(split, shard), pa.Table.from_pylist(embedded, embedding_schema(DIM)))
    return documents, tokenizer


def write_synthetic(synthetic: Artifact, written: Iterable[tuple[Row, str]], tokenizer: Any) -> None:
    """For each d1 a text."""
    rows = [
        {
            "doc_id": i.to_bytes(16, "big"), "d1_id": d1["doc_id"], "sample": 0, "text": text,
            "input_ids": encode_texts(tokenizer, [text])[0], "finish_reason": "stop", "synthesizer": "0" * 16,
            "seed": i, "temperature": 1.0, "top_p": 1.0, "max_tokens": 64,
        }
        for i, (d1, text) in enumerate(written)
    ]  # fmt: skip
    synthetic.write_table("part-00000.parquet", pa.Table.from_pylist(rows, SYNTHETIC))


def nodes_of(config: Config) -> dict[str, Node]:
    """The nodes of the artifacts that lie where the settings say, each named by what its `started.json` says."""
    nodes: dict[str, Node] = {}
    for stage in STAGES:
        made = locate(config, stage.writes)
        fingerprint = made.fingerprint() if made.exists(STARTED) else ""
        nodes[stage.writes] = Node(stage, config, {}, fingerprint, {noun: nodes[noun] for noun in stage.reads})
    return nodes
