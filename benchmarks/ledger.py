"""How long a generation of 10 billion samples takes to restore, and in how much memory.

    python benchmarks/ledger.py --quick               # 1 billion samples
    python benchmarks/ledger.py                       # 10 billion, in 1,024 shards; 1.3 GB of disk

Ledgers as an interrupted run leaves them are generated first: random bits, and the names of 200 segments each. Measured
is what a restarted run does with them: the driver counts what is done, and the workers restore every shard's bitmap.
Here one process does both, and holds all bitmaps at once, which no process of a run does.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import PeakMemory, hardware

from sbp_ray.artifacts import Artifact
from sbp_ray.generation.ledger import ledger_name, num_done, read_ledger, segments_folder

NUM_SHARDS = 1024
NUM_SEGMENTS = 200


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints one line of JSON.")
    parser.add_argument("--quick", action="store_true", help="1 billion samples")
    samples = 10**9 if parser.parse_args().quick else 10**10
    with tempfile.TemporaryDirectory() as folder:
        out = Artifact("synthetic", folder)
        expected = generate(out, samples // NUM_SHARDS)
        with PeakMemory() as memory:
            start = time.monotonic()
            counted = num_done(out, range(NUM_SHARDS))
            counted_s = time.monotonic() - start
            bitmaps = [read_ledger(out, shard)[0] for shard in range(NUM_SHARDS)]
            restored_s = time.monotonic() - start
        assert counted == expected
    line = {
        "benchmark": "ledger",
        "samples": samples,
        "done": counted,
        "bitmaps_gb": round(sum(bits.nbytes for bits in bitmaps) / 1e9, 2),
        "count_s": round(counted_s, 2),
        "count_and_restore_s": round(restored_s, 2),
        "peak_gb": round(memory.peak_gib * 2**30 / 1e9, 2),
        "hardware": hardware(),
    }
    print(json.dumps(line))


def generate(out: Artifact, num_samples: int) -> int:
    """Ledgers of unfinished shards; returns the number of samples done."""
    rng = np.random.default_rng(0)
    Path(out.path("ledger")).mkdir()
    done = 0
    for shard in range(NUM_SHARDS):
        bits = rng.integers(0, 256, num_samples // 8, np.uint8)
        done += int(np.bitwise_count(bits).sum())
        names = [f"{segments_folder(shard)}/{n:08d}-{rng.integers(2**32):08x}.parquet" for n in range(NUM_SEGMENTS)]
        buffer = io.BytesIO()
        np.savez(buffer, bits=bits, segments=np.array(names), num_bad=0)
        Path(out.path(ledger_name(shard))).write_bytes(buffer.getvalue())
    return done


if __name__ == "__main__":
    main()
