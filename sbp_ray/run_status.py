"""How far a run is, from its run directory alone: without Ray, and from any machine that reads the storage.

`status_rows` gives a row for each artifact. Its state is judged by `plan` where the settings are given; without them,
by what the artifacts say of one another. What is written is counted by its files, so it is right whoever writes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow.fs as pafs

from sbp_ray.artifacts import MANIFEST, REMOVAL, RUN_LOCK, STARTED, Artifact
from sbp_ray.cluster_limits import demand
from sbp_ray.config import Config
from sbp_ray.errors import SbpError
from sbp_ray.logs import duration
from sbp_ray.nodes import Node, is_ours, locate
from sbp_ray.plan import plan_run, state_of
from sbp_ray.recipes import describe_differences
from sbp_ray.run_lock import is_held
from sbp_ray.stage_table import FOLDERS, NOUNS, STAGES, Stage
from sbp_ray.training.journal import ATTEMPTS, METRICS, read_whole_lines

COLUMNS = ("artifact", "state", "how far", "since", "dropped", "cost")
_MARKERS = {STARTED, MANIFEST, REMOVAL, RUN_LOCK}
_QUIET_S = 600
"""Where no lock tells whether somebody writes (object stores): so long after the last file it counts as stopped."""
_REASONS = 2  # of drops that are shown


class Written(NamedTuple):
    """What lies in an artifact's folder, without markers."""

    files: int
    num_bytes: int
    last: datetime | None
    """When the newest file was written."""


def status_rows(
    run_dir: str, config: Config | None, dollars_per_hour: float, now: datetime
) -> Iterator[tuple[str, ...]]:
    """`COLUMNS` of each artifact, in the order of the flow.

    Args:
        run_dir: an absolute path, or s3://…
        config: of the run; None judges each artifact by the others.
        dollars_per_hour: what the cluster costs; 0 leaves dollars out.
        now: what ages are counted to.

    Raises:
        SbpError: there is no run.
    """
    made = {noun: locate(config, noun) if config else Artifact(noun, f"{run_dir}/{FOLDERS[noun]}") for noun in NOUNS}
    started = {noun: artifact.read_json(STARTED) for noun, artifact in made.items() if artifact.exists(STARTED)}
    if not started:
        raise SbpError(f"{run_dir} holds no artifact: see that run_dir is the one of the run")
    nodes = plan_run(config) if config else {}
    held = is_held(run_dir)
    for stage in STAGES:
        noun, artifact = stage.writes, made[stage.writes]
        if noun not in started:
            yield FOLDERS[noun], "absent", *[""] * 4
            continue
        manifest, written = artifact.manifest(), _written(artifact)
        stale = _stale(stage, started, nodes.get(noun))
        yield (
            FOLDERS[noun] if config is None or is_ours(config, noun) else artifact.url,
            "being deleted" if artifact.is_being_removed() else stale or _state(manifest, written, held, now),
            _how_far(stage, artifact, manifest, written, now),
            _since(started[noun].get("started_at"), manifest, now),
            _drops(manifest),
            _cost(stage, manifest, config, dollars_per_hour),
        )


def _state(manifest: Mapping[str, Any] | None, written: Written, held: bool | None, now: datetime) -> str:
    if manifest:
        return "done"
    is_recent = written.last is not None and (now - written.last).total_seconds() < _QUIET_S
    return "running" if (is_recent if held is None else held) else "stopped"


def _stale(stage: Stage, started: Mapping[str, Any], node: Node | None) -> str:
    """Why an artifact is not what the settings, or its inputs as they are now, would make; empty where it is."""
    if node is not None:
        if state_of(node) != "stale" or not is_ours(node.config, stage.writes):
            return ""
        changes = describe_differences(started[stage.writes]["recipe"], node.recipe)
        return f"stale: {next(iter(changes), 'another recipe')}"
    read = started[stage.writes]["recipe"]["inputs"]
    other = [noun for noun in read if noun in started and read[noun] != started[noun]["fingerprint"]]
    return f"stale: made from another {other[0]}" if other else ""


def _written(artifact: Artifact) -> Written:
    infos = artifact.fs.get_file_info(pafs.FileSelector(artifact.path(), recursive=True))
    files = [info for info in infos if info.type == pafs.FileType.File and info.base_name not in _MARKERS]
    return Written(len(files), sum(info.size for info in files), max((info.mtime for info in files), default=None))


def _how_far(
    stage: Stage, artifact: Artifact, manifest: Mapping[str, Any] | None, written: Written, now: datetime
) -> str:
    if manifest:
        counts = ("documents", "pairs", "steps")
        return ", ".join(f"{manifest['stats'][name]:,} {name}" for name in counts if name in manifest["stats"])
    told = []
    if stage.job in ("pretrain", "tune") and (lines := read_whole_lines(artifact, METRICS)):
        row = json.loads(lines[-1])
        told.append(f"step {row['step']:,}, {duration(row.get('eta_s', 0))} to go")
    if rows := [json.loads(line) for line in read_whole_lines(artifact, ATTEMPTS)]:
        told.append(f"attempt {len(rows)}, {sum(row['wasted_steps'] for row in rows)} steps done again")
    ago = f", the last {duration((now - written.last).total_seconds())} ago" if written.last else ""
    return "; ".join([*told, f"{written.files:,} files, {written.num_bytes / 2**20:,.1f} MiB{ago}"])


def _since(started_at: str | None, manifest: Mapping[str, Any] | None, now: datetime) -> str:
    if not started_at:
        return ""
    begun = datetime.fromisoformat(started_at)
    ended = datetime.fromisoformat(manifest["finished_at"]) if manifest else now
    day = begun.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{day}, {'took' if manifest else 'for'} {duration((ended - begun).total_seconds())}"


def _drops(manifest: Mapping[str, Any] | None) -> str:
    drops = Counter({key: value for key, value in (manifest or {}).get("stats", {}).get("drops", {}).items() if value})
    if not drops:
        return ""
    most = ", ".join(f"{count:,} {reason}" for reason, count in drops.most_common(_REASONS))
    others = len(drops) - _REASONS
    return most + (f" and {others} more" if others > 0 else "")


def _cost(stage: Stage, manifest: Mapping[str, Any] | None, config: Config | None, dollars_per_hour: float) -> str:
    """Of the run that finished it: how long earlier ones were at work, storage does not tell."""
    if not manifest:
        return ""
    hours = manifest["wall_s"] / 3600
    told = [duration(manifest["wall_s"])]
    if config and (gpus := demand(stage.job, config)["GPU"]):
        told.append(f"{hours * gpus:.2f} GPU-hours")
    if dollars_per_hour:
        told.append(f"${hours * dollars_per_hour:,.2f}")
    return ", ".join(told)
