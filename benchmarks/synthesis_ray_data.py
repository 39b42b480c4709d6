"""Ray Data's LLM processor on the prompts of synthesis.py.

It runs in a process of its own with a deadline: it cannot hold up, or slow down, what is measured beside it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from synthesis_work import CORES, Work, engine_settings, sampling, settle, start_ray, work_in

from sbp_ray.engine.deploy import quiet_environment

BATCH = 32
"""Rows, Ray Data's default; documents come in multiples of it, so that its blocks are batches."""
DEADLINE_S = 600


def main(folder: str, rounds: str) -> None:
    """Print the rates as a line of JSON."""
    settle(CORES)
    print(json.dumps({"rates": ray_data_rates(work_in(Path(folder)), int(rounds))}), flush=True)


def ray_data_apart(work: Work, rounds: int) -> list[float]:
    """Ray Data's rates, measured in another process; none, and a line on standard error, where it fails or hangs."""
    folder = Path(work.corpus.url).parent
    command = [sys.executable, __file__, str(folder), str(rounds)]
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, start_new_session=True)  # noqa: S603  ourselves
        try:
            process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            print(f"ray data: not done within {DEADLINE_S} s, ended", file=sys.stderr, flush=True)
        finally:  # with all that it has started
            for left in (
                [*psutil.Process(process.pid).children(recursive=True), process] if process.poll() is None else []
            ):
                left.kill()
            process.wait()
        output.seek(0)
        lines = [json.loads(line) for line in output.read().splitlines() if line.startswith(b'{"rates"')]
    if not lines:
        print(f"ray data: no result, exit status {process.returncode}", file=sys.stderr, flush=True)
    return lines[0]["rates"] if lines else []


def ray_data_rates(work: Work, rounds: int) -> list[float]:
    """Ray Data's LLM processor with its default batches; neither the engine's start nor its first steps count.

    A processor starts its engine when its data set runs, and ends it after. The first batch warms it; the others are
    held back until that is done, and the clock runs from the first of their rows to the last.
    """
    import ray
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    start_ray()
    # As our replicas: the engine in the actor's own process, and its worker with it.
    variables = quiet_environment() | {"OMP_NUM_THREADS": str(CORES), "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    ray.data.DataContext.get_current().wait_for_min_actors_s = 300
    config = vLLMEngineProcessorConfig(
        model_source=work.synthesizer.path("model"),
        engine_kwargs=engine_settings(work) | {"distributed_executor_backend": "uni"},
        concurrency=1,
        batch_size=BATCH,
        max_concurrent_batches=8,
        accelerator_type=None,
        placement_group_config={"bundles": [{"CPU": CORES}]},
        runtime_env={"env_vars": variables | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    rates = []
    for number in range(rounds):
        warm = str(Path(work.corpus.url).parent / f"warm-{number}")
        processor = build_processor(config, preprocess=partial(_held_back, warm), postprocess=partial(_timed, warm))
        rows = [{"prompt": prompt, "sampling": sampling(work, place)} for place, prompt in enumerate(work.prompts)]
        first = [{"prompt": row["prompt"], "sampling": row["sampling"] | {"max_tokens": 8}} for row in rows[:BATCH]]
        items = [{**row, "warms": True} for row in first] + [{**row, "warms": False} for row in rows]
        done = processor(ray.data.from_items(items, override_num_blocks=math.ceil(len(items) / BATCH))).take_all()
        measured = [row for row in done if not row["warms"]]
        seconds = max(row["end"] for row in measured) - min(row["end"] - row["took"] for row in measured)
        rates.append(sum(row["tokens"] for row in measured) / seconds)
        print(f"ray data: {rates[-1]:,.1f} tokens/s", file=sys.stderr, flush=True)
    return rates


def _held_back(warm: str, row: dict[str, Any]) -> dict[str, Any]:
    while not row["warms"] and not Path(warm).exists():
        time.sleep(0.01)
    return {"tokenized_prompt": row["prompt"], "prompt": "", "sampling_params": row["sampling"], "warms": row["warms"]}


def _timed(warm: str, row: dict[str, Any]) -> dict[str, Any]:
    if row["warms"]:
        Path(warm).touch()
    end = time.monotonic()
    return {"tokens": len(row["generated_tokens"]), "end": end, "took": row["time_taken_llm"], "warms": row["warms"]}


if __name__ == "__main__":
    main(*sys.argv[1:])
