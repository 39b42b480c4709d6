"""jobs/synthesize.py with its driver, its workers, replicas, engines and a node killed in one run.

Two nodes of one cluster, an engine on each. In the end every sample is there, none twice, and few were written again.
Six kills, with each kind of victim among them, in `make test`; twenty in `make test-all`.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from functools import cache
from pathlib import Path

import psutil
import pytest
import yaml
from merged_shards import write_signed
from processes import command_line, is_engine
from ray_head import Head, free_ports, ray_head

from sbp_ray.artifacts import MANIFEST, STARTED, Artifact
from sbp_ray.generation.merging import finished_shards, part_name
from sbp_ray.generation.segments import list_segments
from sbp_ray.stage_table import FOLDERS
from sbp_ray.text.tokenizer import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

REPO = Path(__file__).parents[2]
NUM_SHARDS, SAMPLES, MAX_TOKENS = 4, 4, 60
FEW = ("driver", "worker", "replica", "dismissed engine", "driver", "node")
MANY = ("driver",) * 6 + ("worker",) * 6 + ("replica",) * 3 + ("engine",) * 2 + ("dismissed engine",) * 2 + ("node",)
COUNT_TOKENS = """
import os, sys
from importlib.machinery import PathFinder


class _Finder:
    # Python imports this file in every process of the cluster. In a replica, its engine's own count of what it has
    # written goes to a file after each step, and outlives it.
    def find_spec(self, name, path=None, target=None):
        if name != "sbp_ray.engine.replica":
            return None
        spec = PathFinder.find_spec(name, path, target)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            record, written = module.EngineCounters.record, {"tokens": 0}
            file = os.open(f"FOLDER/{os.getpid()}", os.O_CREAT | os.O_WRONLY)

            def counted(self, scheduler_stats, iteration_stats, *arguments, **named):
                record(self, scheduler_stats, iteration_stats, *arguments, **named)
                if iteration_stats is not None:
                    ended = sum(str(one.finish_reason) == "stop" for one in iteration_stats.finished_requests)
                    written["tokens"] += iteration_stats.num_generation_tokens - ended  # an <eos> is no token of a text
                    os.pwrite(file, b"%12d" % written["tokens"], 0)

            module.EngineCounters.record = counted

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())
"""
NAMES = {"worker": "ShardWorker", "replica": "SynthesizerServer"}


def write_inputs(folder: Path, synthesizer: Artifact, num_documents: int) -> None:
    corpus, embeddings, copy = (
        Artifact(name, str(folder / FOLDERS[name])) for name in ("corpus", "embeddings", "synthesizer")
    )
    texts = [f"the river number {number} of the north" for number in range(num_documents)]
    write_signed(corpus, embeddings, texts, NUM_SHARDS, load_tokenizer(synthesizer.path("model")))
    copy.commit_folder(Path(synthesizer.path("model")), "model")
    for artifact in (corpus, embeddings, copy):
        artifact.write_json(STARTED, {"fingerprint": "00c0ffee00c0ffee"})
        artifact.write_json(MANIFEST, {"stats": {"shards": NUM_SHARDS}})


class Run:
    """The run directory, the cluster, and attempts at the job."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder, self.head, self.log = folder, head, folder / "log.txt"
        self.out = Artifact("synthetic", str(folder / FOLDERS["synthetic"]))
        settings = yaml.safe_load((REPO / "tests/unit/small.yaml").read_text())
        settings |= {
            "run_dir": str(folder),
            "artifacts": {name: str(folder / FOLDERS[name]) for name in ("corpus", "embeddings", "synthesizer")},
            "engine": {
                "dtype": "float32",
                "max_model_len": 256,
                "resources": {
                    "enforce_eager": True,
                    "num_cpus": 1, "min_replicas": 2, "max_replicas": 2, "max_num_seqs": 4, "kv_cache_gib": 0.05,
                },
            },
            "synthesize": {
                "samples_per_document": SAMPLES,
                "max_tokens": MAX_TOKENS,
                "min_tokens": 2,
                "keep_unfinished": True,
                "resources": {"commit_every_s": 0.1},
            },
        }  # fmt: skip
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))
        self.node: subprocess.Popen[bytes] | None = None
        self.samples_in = cache(self.out.num_rows)  # of a segment, which never changes
        self.looks: Counter[str] = Counter()  # at the job, by what came of them: for the message of a failure

    def start_node(self) -> None:
        """A second node, in a session of its own."""
        ports = dict(zip(("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent"),
                         free_ports(4), strict=True))  # fmt: skip
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--address={self.head.address}"]
        command += ["--num-cpus=2", "--object-store-memory=100000000", "--node-ip-address=127.0.0.1"]
        command += [f"--{name}-port={port}" for name, port in ports.items()]
        with (self.folder / "node.log").open("ab") as log:
            environment = self.head.environment | {"SBP_RAY_TEST_NODE": "second"}
            self.node = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def start(self) -> subprocess.Popen[bytes]:
        environment = self.head.environment | {"RAY_ADDRESS": self.head.address}
        command = [sys.executable, "jobs/synthesize.py", "--config", str(self.folder / "config.yaml")]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, cwd=REPO, env=environment, stdout=log, stderr=log)

    def done(self) -> int:
        """Samples that are finished for good."""
        finished = 0
        with suppress(FileNotFoundError):  # what was there when it was listed: its shard has just been merged
            finished = sum(self.out.read_stats(name)["samples"] for name in finished_shards(self.out).values())
            for shard in range(NUM_SHARDS):
                finished += sum(map(self.samples_in, list_segments(self.out, shard)))
        return finished

    def find(self, victim: str) -> list[psutil.Process]:
        if "engine" in victim:
            return list(filter(is_engine, self.head.processes()))
        return [process for process in self.head.processes() if NAMES[victim] in command_line(process)]

    def kill(self, victim: str, driver: subprocess.Popen[bytes], rng: random.Random) -> bool:
        """Whether there was one to kill."""
        if victim == "driver":
            driver.kill()
            driver.wait()
            return True
        if victim == "node":
            second = [p for p in self.head.processes() if _of_second_node(p)]
            for process in second:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            assert self.node is not None
            self.node.wait()
            self.start_node()
            return bool(second)
        if not (found := self.find(victim)):
            return False
        chosen = rng.choice(found)
        if victim == "dismissed engine":
            chosen.terminate()  # it ends its samples, and then itself
        else:
            chosen.kill()
        return True


def _of_second_node(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return process.environ().get("SBP_RAY_TEST_NODE") == "second"
    return False


def attempt(run: Run, strikes: list[tuple[int, str]], rng: random.Random) -> int:
    """Run the job until it ends by itself or is killed; strikes that were made are taken from the list."""
    driver = run.start()
    while driver.poll() is None:
        if not strikes or run.done() < strikes[0][0]:
            run.looks["nothing was due"] += 1
        elif run.kill(strikes[0][1], driver, rng):
            run.looks["a kill"] += 1
            strikes.pop(0)
        else:
            run.looks[f"no {strikes[0][1]} was found"] += 1
        time.sleep(0.05)  # only how often we look
    return driver.returncode


@pytest.mark.parametrize(
    ("planned", "num_documents"), [(FEW, 400), pytest.param(MANY, 900, marks=pytest.mark.long)], ids=["6", "20"]
)
def test_killed_again_and_again_every_sample_is_there_once(
    tiny_synthesizer: Artifact, planned: tuple[str, ...], num_documents: int
) -> None:
    rng = random.Random(11)
    total = num_documents * SAMPLES
    victims = rng.sample(planned, len(planned))
    strikes = [(total * (place + 1) // (len(victims) + 2), victim) for place, victim in enumerate(victims)]
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        hooks, counts = folder / "hooks", folder / "counts"
        hooks.mkdir()
        counts.mkdir()
        (hooks / "sitecustomize.py").write_text(COUNT_TOKENS.replace("FOLDER", str(counts)))
        environment = {"RAY_AUTH_MODE": "disabled", "RAY_health_check_period_ms": "1000",
                       "RAY_health_check_failure_threshold": "3",
                       "PYTHONPATH": f"{hooks}:{os.environ.get('PYTHONPATH', '')}"}  # fmt: skip
        write_inputs(folder, tiny_synthesizer, num_documents)
        [gcs_port] = free_ports(1)
        with ray_head(folder, environment=environment, gcs_port=gcs_port, num_cpus=3) as head:
            run = Run(folder, head)
            run.start_node()
            codes: list[int] = []
            while not codes or codes[-1] != 0:
                assert len(codes) < 12, run.log.read_text()[-5000:]
                codes.append(attempt(run, strikes, rng))
                assert codes[-1] in (0, -9), run.log.read_text()[-5000:]
        assert strikes == [], (run.looks, codes)  # each found its victim before the work was done
        assert codes.count(-9) == planned.count("driver")
        check(run, total)
        # A replica that was killed before its engine's first step left an empty file.
        check_tokens(run, sum(int(file.read_text() or 0) for file in counts.iterdir()), len(planned))


def check_tokens(run: Run, written: int, kills: int) -> None:
    """At most 5 % of the tokens were written again: by the engines' own counts, beside what was kept.

    A kill costs what was in flight, few samples at four sequences an engine, and what was done since the last commit.
    """
    manifest = run.out.manifest()
    assert manifest is not None
    kept = manifest["stats"]["tokens_generated"]
    again = (written - kept) / kept
    print(f"tokens written {written:,}, kept {kept:,}: {again:.2%} written again, in {kills} kills")
    assert 0 <= again <= 0.05


def check(run: Run, total: int) -> None:
    manifest = run.out.manifest()
    assert manifest is not None
    stats = manifest["stats"]
    rows = [row for shard in range(NUM_SHARDS) for row in run.out.read_table(part_name(shard)).to_pylist()]
    assert stats["samples"] == total
    assert len(rows) == stats["documents"]
    assert stats["documents"] + sum(stats["drops"].values()) == total
    assert "refused_by_engine" not in stats["drops"]
    assert {row["finish_reason"] for row in rows} <= {"stop", "length"}
    assert max(Counter((row["d1_id"], row["sample"]) for row in rows).values()) == 1
    assert [path for path in Path(run.out.path("segments")).rglob("*") if path.is_file()] == []
