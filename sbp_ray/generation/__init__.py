"""What the synthesize stage is made of.

d1             which documents are prompts, and in which order they are requested.
shard_worker   the Ray Data actor that makes shards, two at a time: from `open_shard` to `merging`.
open_shard     requests samples of one shard from the `engines`, and commits what is finished, as `sample_rows`.
segments       what is done, sample by sample.
filters        why a document is not kept.
merging        a shard's segments become one file.
parts          the last steps, once shards are merged: what is dropped by `scores` or as a copy (`deduplication`).
coordinator    what workers know of one another; progress, rates and cost.
"""
