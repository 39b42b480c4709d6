"""What the synthesize stage is made of.

sources    which d1 are drawn, and in which order.
filters    why a document is not kept.
ledger     what is done, sample by sample: segments, and a bitmap for each shard.
merging    a shard's segments become its part of the artifact.
across     copies of other shards' documents, once all parts are there.
worker     the Ray Data actor that makes shards. `slots` bounds what it keeps open,
           `drawing` asks the engines, `committing` writes what is finished.
tally      progress, rates and cost.
"""
