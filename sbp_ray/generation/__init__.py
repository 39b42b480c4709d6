"""What the synthesize stage is made of.

d1             which documents are prompts, and in which order they are requested.
shard_worker   the Ray Data actor that makes shards, two at a time: from `open_shard` to `merging`.
open_shard     requests samples of one shard from the `engines`, and commits what is finished, as `sample_rows`.
segments       what is done, sample by sample.
filters        why a document is not kept.
merging        a shard's segments become one file.
deduplication  the last step, once all shards are merged: copies are dropped, and the parts of the artifact written.
coordinator    what workers know of one another; progress, rates and cost.
"""
