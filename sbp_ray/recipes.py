"""What an artifact is made from: the settings and the input files that decide it, and the words for a difference."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sbp_ray.artifacts import fingerprint_of
from sbp_ray.config import Config
from sbp_ray.errors import SbpError, one_line
from sbp_ray.input_files import HUGGING_FACE, DatasetName, find_input_files
from sbp_ray.object_stores import open_file_system
from sbp_ray.stage_table import Stage
from sbp_ray.text.contamination import list_evaluation_files
from sbp_ray.threads import map_in_threads

_NOT_IN_RECIPE = ("resources", "max_bad_share", "max_damaged_files", "max_unknown_share", "vllm")
"""How fast a stage works and when it stops, not what it makes. Of `engine.vllm` some arguments count."""
_WINDOW_BYTES = 1 << 16
"""Read of a local file at its head, its middle and its tail: smaller files are read whole, three times over."""


def reads_of(stage: Stage, config: Config) -> tuple[str, ...]:
    """What the stage is made from with these settings: what it always reads, and what they ask for."""
    rephrase = config.synthesize.rephrase
    if stage.job == "synthesize" and rephrase is not None:
        own = tuple(noun for noun in stage.reads if noun != "synthesizer")
        return (*own, "pairs") if rephrase.of == "pair" else own
    if stage.job == "pretrain" and config.pretrain.in_context:
        return (*stage.reads, "pairs")
    return stage.reads


def deciding_settings(stage: Stage, config: Config) -> dict[str, Any]:
    """The sections that decide the stage's result, without settings that change no result or are off."""
    settings = config.model_dump(mode="json")
    found = {section: _deciding(settings[section]) for section in stage.sections}
    if "engine" in found and (arguments := config.engine.deciding_arguments):
        found["engine"]["vllm"] = arguments  # also those that turn off what vLLM does by itself
    return found


def _deciding(section: Mapping[str, Any]) -> dict[str, Any]:
    left = {
        key: _deciding(value) if isinstance(value, dict) else value
        for key, value in section.items()
        if key not in _NOT_IN_RECIPE
    }
    return {key: value for key, value in left.items() if not _is_off(value)}


def _is_off(value: Any) -> bool:
    """Such a setting is left out: what was made before there was a setting is as if made with the setting off."""
    return value is None or value is False or value in ([], {})


def input_files(stage: Stage, config: Config, recorded: Mapping[str, str]) -> dict[str, str]:
    """Fingerprints of the files outside the run that the stage reads.

    Args:
        recorded: the fingerprints in the recipe of a finished artifact, which needs its input files no more.

    Raises:
        SbpError: a file is not there, or cannot be read.
    """
    found = {}
    for name, identify in _outside_inputs(stage, config):
        try:
            found[name] = recorded[name] if name == "datasets" and name in recorded else identify()
        except SbpError:
            if name not in recorded:
                raise
            found[name] = recorded[name]
    return found


def _outside_inputs(stage: Stage, config: Config) -> Iterator[tuple[str, Callable[[], str]]]:
    patterns = config.ingest.input if stage.job == "ingest" else ()
    datasets = [pattern for pattern in patterns if pattern.startswith(HUGGING_FACE)]
    files = [pattern for pattern in patterns if pattern not in datasets]
    if datasets:
        yield "datasets", lambda: fingerprint_of({name: _dataset_revision(name) for name in datasets})
    if files:
        yield "files", lambda: _fingerprint_of_files(find_input_files(files).files)
    if "decontaminate" in stage.sections and config.decontaminate.evaluation_sets:
        yield "evaluation sets", lambda: _fingerprint_of_files(list_evaluation_files(config.decontaminate))
    if "eval" in stage.sections:
        yield "evaluation files", lambda: _fingerprint_of_files(list(_measured_by(config)))


def _measured_by(config: Config) -> Iterator[tuple[str, int]]:
    """What models and texts are measured by, with sizes in bytes."""
    cfg, tasks = config.eval, config.benchmarks.tasks.values()
    named = (cfg.truth, cfg.found_elsewhere, *(file for task in tasks for file in (task.file, task.fewshot_file)))
    for path in filter(None, named):
        fs, inner = open_file_system(path)
        size = fs.get_file_info(inner).size
        if size is None:
            raise SbpError(f"{path}: there is no such file: correct eval or benchmarks")
        yield path if "://" in path else inner, size
    if cfg.questions:
        yield from find_input_files([cfg.questions]).files


def _fingerprint_of_files(files: Sequence[tuple[str, int]]) -> str:
    """Of each file's name, size and content, wherever it lies; of the content an object store gives its ETag."""
    marks = enumerate(map_in_threads(lambda file: _mark(*file), files))
    return fingerprint_of({str(n): [Path(files[n][0]).name, files[n][1], mark] for n, mark in marks})


def _mark(path: str, size: int) -> str:
    if "://" not in path:
        try:
            return _digest(path, size, Path(path).stat().st_mtime_ns)
        except OSError as error:
            remedy = "give this user the right to read it, or leave it out"
            raise SbpError(f"{path}: cannot be read: {error.strerror}: {remedy}") from None
    store, inner = open_file_system(path)
    with store.open_input_stream(inner) as stream:
        etag = (stream.metadata() or {}).get(b"ETag")
    return etag.decode() if etag else str(store.get_file_info(inner).mtime_ns)  # of a store without: its upload's time


@functools.lru_cache(maxsize=1 << 20)
def _digest(path: str, size: int, mtime_ns: int) -> str:
    """Of a local file's head, middle and tail; kept, since the many plans of a grid read the same files."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for start in (0, (size - _WINDOW_BYTES) // 2, size - _WINDOW_BYTES):
            file.seek(max(0, start))
            digest.update(file.read(_WINDOW_BYTES))
    return digest.hexdigest()[:16]


def _dataset_revision(pattern: str) -> str:
    """What the hub, or its cache here, holds under the name at this moment: a commit, or a hash of the files. A
    revision that the name gives is taken at its word, without asking anybody."""
    import datasets

    name, config, revision = DatasetName.parse(pattern)
    if revision is not None:
        return revision
    try:
        return str(datasets.load_dataset_builder(name, config).hash)
    except (OSError, ValueError) as error:
        raise SbpError(f"{pattern}: cannot be opened ({one_line(error)}): check the name and the network") from None


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Each setting or input in which two recipes differ, in words."""
    for key in sorted(old.keys() | new.keys()):
        before, now = old.get(key), new.get(key)
        name = key if prefix in ("", "settings.", "inputs.") else f"{prefix.removeprefix('settings.')}{key}"
        if isinstance(before, dict) and isinstance(now, dict):
            yield from describe_differences(before, now, f"{prefix}{key}.")
        elif before != now and prefix == "inputs.":
            yield f"other {'input files' if name == 'files' else name} ({before} then, {now} now)"
        elif before != now:
            yield f"{name}={before}, which is {now} now"
