"""What the synthesize stage is made of.

d1             which documents are prompts, and in which order they are started.
filters        why a document is not kept.
ledger         what is done, sample by sample: segments, and a bitmap for each shard.
merging        a shard's segments become one file.
deduplication  the last step, once all shards are merged: copies are dropped, and the parts of the artifact written.
shard_worker   the Ray Data actor that makes shards. `slots` bounds what it keeps open,
               `drawing` asks the engines, `committing` writes what is finished.
tally          progress, rates and cost.
"""
