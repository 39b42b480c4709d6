"""pairs, corpus -> which documents lie behind one another in the rows of real text, each with its tokens

    path        one worker: a path through all train documents along the pairs, cut into as many pieces as the corpus
                has shards; it asks for the documents of each piece
    fetched     worker of a shard of the corpus: hands them out (`fetched_documents`)

Whoever packs piece n then finds its documents in order (`read_piece`). The pairs are the graph: without
near-duplicates, which would teach copying, and with the relation that a synthesizer is tuned on.

The path is found by one worker, which holds two numbers for each pair and three for each document.

Legend: D documents, N directed pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from sbp_ray.artifacts import Artifact
from sbp_ray.shards import Stats, list_shards, shard_name
from sbp_ray.steps import SCRATCH, Step
from sbp_ray.text.tokenizer import SpecialIds
from sbp_ray.training.chains import Chains, related_chain
from sbp_ray.training.fetched_documents import fetch_tokens, fetched_file, read_fetched, rows_of, write_wanted


def path_steps(stage: str, corpus: Artifact, pairs: Artifact, out: Artifact) -> Sequence[Step]:
    """The steps after which `read_piece` finds every piece."""
    num_shards = len(list_shards(corpus, "train"))
    items = [_item(shard) for shard in range(num_shards)]
    reads = [(corpus, "train"), (pairs, "train")]
    last = _path_file(num_shards - 1)
    return [
        Step(f"{stage}-path", partial, (order_documents, corpus, pairs, out), [{}], lambda _: last, reads=reads),
        Step(f"{stage}-fetched", partial, (fetch_tokens, corpus, out), items, fetched_file, reads=reads[:1]),
    ]


def read_piece(shard: int, out: Artifact, special: SpecialIds) -> Chains:
    """The documents of a piece of the path, as one chain."""
    return related_chain(out.read_table(_path_file(shard))["doc_id"], read_fetched(_item(shard), out), special)


def _item(shard: int) -> dict[str, Any]:
    return {"split": "train", "shard": shard}


def _path_file(shard: int) -> str:
    return shard_name(f"{SCRATCH}/path", shard)


def order_documents(corpus: Artifact, pairs: Artifact, out: Artifact, _: dict[str, Any]) -> Stats:
    """Find the path through all train documents, and ask for those of each piece."""
    num_shards = len(list_shards(corpus, "train"))
    documents, directed = _read_ids(corpus, "doc_id"), _read_ids(pairs, "d1_id", "d2_id")
    from_N, to_N = (rows_of(directed[column], documents, corpus) for column in ("d1_id", "d2_id"))
    path_D = find_path(len(documents), from_N, to_N)
    for shard, piece in enumerate(np.array_split(path_D, num_shards)):
        here = documents.take(pa.array(piece))
        write_wanted(_item(shard), here["doc_id"], corpus, out)
        out.write_table(_path_file(shard), here)
    return {"documents": len(documents)}


def _read_ids(made: Artifact, *columns: str) -> pa.Table:
    """Of all shards of the train split."""
    return pa.concat_tables(made.read_table(name, columns=[*columns]) for name in list_shards(made, "train"))


def find_path(num_documents: int, from_N: NDArray[np.int64], to_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[D]: the documents in the order in which they are come to, each once.

    Greedy, as in In-Context Pretraining (2310.10638): from a document to the nearest related one that is left; where
    none is, on with the document of those left that has the fewest related ones, since others lead back to it least
    often.

    Args:
        from_N: documents are numbered from 0.
        to_N: related to the document in `from_N`; of each document the nearest first.
    """
    order_N = np.argsort(from_N, kind="stable")
    degree_D = np.bincount(from_N, minlength=num_documents)
    ends_D = np.cumsum(degree_D)
    to_N = to_N[order_N]
    is_left_D = np.ones(num_documents, bool)
    path: list[int] = []
    for start in np.argsort(degree_D, kind="stable").tolist():
        here = start if is_left_D[start] else None
        while here is not None:
            is_left_D[here] = False
            path.append(here)
            related = to_N[ends_D[here] - degree_D[here] : ends_D[here]]
            left = related[is_left_D[related]]
            here = int(left[0]) if len(left) else None
    return np.asarray(path, np.int64)
