"""The rows that travel between stages: one Arrow schema for each kind.

The splits run side by side through corpus, embeddings, neighbors and pairs: `train`; `validation`, which is reported;
and `development`, which checkpoints are chosen by, where there is one. The split of a document follows from its group
(its article), and its shard from its id, so that any stage can find any document without an index.
"""

from typing import Literal, get_args

import pyarrow as pa

Split = Literal["train", "validation", "development"]
SPLITS: tuple[Split, ...] = get_args(Split)

DOC_ID = pa.binary(16)
"""A document's id: BLAKE2b-128 of its text without what cannot be seen of it (`ingestion.parsing.document_id`), or of
what it was written from. JSON and people see it as hex digits."""

DOCUMENT = pa.schema(
    [
        ("doc_id", DOC_ID),  # of the text
        ("group", pa.string()),  # what the split is made by; the hex id where the input names no group
        ("text", pa.large_string()),
        ("input_ids", pa.large_list(pa.int32())),  # the text's tokens, without special tokens
    ]
)
NEIGHBORS = pa.schema(
    [
        ("doc_id", DOC_ID),
        ("neighbor_ids", pa.list_(DOC_ID)),  # nearest first, never the document itself
        ("cosines", pa.list_(pa.float32())),
        ("jaccards", pa.list_(pa.float32())),  # of the two documents' shingles, estimated by MinHash
        ("containments", pa.list_(pa.float32())),  # the same: share of the smaller one's shingles that the other holds
        ("content_overlaps", pa.list_(pa.float32())),  # the same of words: share of the fewer content words in common
        ("same_group", pa.list_(pa.bool_())),
    ]
)
PAIR = pa.schema(
    [
        ("d1_id", DOC_ID),
        ("d2_id", DOC_ID),
        ("cosine", pa.float32()),
        ("jaccard", pa.float32()),
    ]
)
PACKED_DOCUMENT = pa.schema(  # the index of a flat file of tokens, whose documents lie one behind the other
    [
        ("length", pa.int32()),  # tokens
        ("first_supervised", pa.int32()),  # position in the document of the first token that is a target
        ("row", pa.int32()),  # that it was packed into
    ]
)
SYNTHETIC = pa.schema(
    [
        ("doc_id", DOC_ID),  # of d1_id and sample
        ("d1_id", DOC_ID),
        ("sample", pa.int32()),  # 0, 1, … among the samples of one d1
        ("text", pa.large_string()),
        ("input_ids", pa.large_list(pa.int32())),
        ("finish_reason", pa.string()),
        ("synthesizer", pa.string()),  # the fingerprint of the checkpoint that wrote it
        ("round", pa.int32()),  # 1 where that was tuned from an LM of real text: see sbp_ray.rounds
        ("seed", pa.int64()),
        ("temperature", pa.float32()),
        ("top_p", pa.float32()),
        ("max_tokens", pa.int32()),
        ("nll_nats", pa.float32()),  # by the synthesizer, a token; null where no setting asks for it, as the next
        ("gain_nats", pa.float32()),  # what d1 is worth, a token
    ]
)


SIGNATURE_BYTES = 256  # one byte of each of as many minima: see sbp_ray.text.minhash


def embedding_schema(dim: int) -> pa.Schema:
    """Rows of the embeddings: a unit vector for each document, and what pairing needs to know of its text."""
    return pa.schema(
        [
            ("doc_id", DOC_ID),
            ("vector", pa.list_(pa.float16(), dim)),
            ("signature", pa.binary(SIGNATURE_BYTES)),  # b-bit MinHash of the shingles
            ("num_shingles", pa.int32()),  # distinct ones
            ("content_signature", pa.binary(SIGNATURE_BYTES)),  # of the content words: see sbp_ray.text.content
            ("num_content_words", pa.int32()),  # distinct ones
            ("group_hash", pa.uint64()),  # equal for documents of one group
        ]
    )


def shard_of(doc_id: bytes, num_shards: int) -> int:
    """The shard that holds a document: ids are hashes, so shards come out even."""
    return int.from_bytes(doc_id[:4], "big") % num_shards
