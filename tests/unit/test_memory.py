"""How much memory text takes: in a process that may have so much more and no more, whatever the machine has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_MIB = 200
"""Beyond what the process holds when it begins; eight megabytes of text took 400 when they were tokenised at once."""
PROCESS = """
import resource, sys
from pathlib import Path
from sbp_ray.artifacts import Artifact
from sbp_ray.config import DecontaminateConfig, EmbedConfig, ForwardResources, IngestConfig

root = Path(sys.argv[1])
corpus = Artifact("corpus", str(root / "corpus"))

def limit() -> None:
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    data_bytes = int(status["VmData"].split()[0]) * 1024 + LIMIT_MIB * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
"""
WORK = {
    "ingest": """
from sbp_ray.stages.ingest import ingest_documents
cfg = IngestConfig(input=(str(root / "in.jsonl"),), num_shards=1, validation_share=0, development_share=0,
                   tokenizer=str(root / "tokenizer"))
limit()
ingest_documents(cfg, decontaminate=DecontaminateConfig(), out=corpus)
""",
    "embed": """
from sbp_ray.stages.embed import ShardEmbedder, find_common_words
cfg = EmbedConfig(model=str(root / "model"), max_tokens=64, resources=ForwardResources(num_threads=1))
embeddings, name = Artifact("embeddings", str(root / "embeddings")), "train/part-00000.parquet"
worker = ShardEmbedder(cfg, corpus, embeddings, None)
limit()
find_common_words(corpus, embeddings, {"names": [name]})
worker({"name": name})
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty documents of a hundred thousand characters, a tokenizer and an embedder."""
    import json

    from tiny_embedder import make_bert

    from sbp_ray.text.tokenizer import train_tokenizer

    made = tmp_path_factory.mktemp("memory")
    words = Path(__file__).read_text(encoding="utf-8").split()
    texts = [" ".join(words[number:] * 1000)[:100_000] for number in range(80)]
    (made / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer(words, 400).save_pretrained(made / "tokenizer")
    make_bert(made)
    return made


@pytest.mark.long
@pytest.mark.parametrize("stage", ["ingest", "embed"])
def test_text_that_is_tokenised_takes_little_memory_however_long_the_documents_are(folder: Path, stage: str) -> None:
    alone = {"TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    steady = {"ARROW_DEFAULT_MEMORY_POOL": "system", "ARROW_IO_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    code = PROCESS.replace("LIMIT_MIB", str(LIMIT_MIB)) + WORK[stage]
    made = subprocess.run(
        [sys.executable, "-c", code, str(folder)], env=os.environ | alone | steady, capture_output=True, text=True
    )
    assert made.returncode == 0, made.stderr[-2000:]
