"""What ingest's workers do: parse input files into scratch files, and choose what becomes a shard."""
