"""Settings: what is refused, in which words, and how soon."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sbp_ray.cli import parse_command
from sbp_ray.config import Config
from sbp_ray.config_file import load_config
from sbp_ray.errors import SbpError

REPO = Path(__file__).parents[2]
SMALL = Path(__file__).with_name("small.yaml")


def _message(*overrides: str, path: Path = SMALL) -> str:
    with pytest.raises(SbpError) as caught:
        load_config(path, list(overrides))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("embed.dtyp=float32", "embed.dtyp='float32': no such setting; did you mean embed.dtype?"),
        ("pair.min_cosin=0.5", "pair.min_cosin=0.5: no such setting; did you mean pair.min_cosine?"),
        ("pretrain.resources.num_worker=2", "did you mean pretrain.resources.num_workers?"),
        ("embd.dtype=float32", "no such setting; did you mean embed?"),
        ("neighbors.qqq=1", "no such setting; there are num_neighbors, min_recall, "),
    ],
)
def test_a_misspelt_setting_is_named_with_the_nearest_real_one(override: str, words: str) -> None:
    assert words in _message(override)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pair.min_cosine=1.5", "pair.min_cosine=1.5: input should be less than or equal to 1"),
        ("ingest.num_shards=0", "ingest.num_shards=0: input should be greater than 0"),
        ("pretrain.peak_lr=fast", "pretrain.peak_lr='fast': input should be a valid number"),
        ("pretrain.peak_lr=.inf", "pretrain.peak_lr=inf: input should be a finite number"),
        ("model.head_dim=31", "model.head_dim=31: input should be a multiple of 2"),
        ("neighbors.seed=-1", "neighbors.seed=-1: input should be greater than or equal to 0"),
        ("pair.seed=4294967296", "pair.seed=4294967296: input should be less than 4294967296"),
        ("engine.resources.gpu_memory_share=0", "engine.resources.gpu_memory_share=0: input should be greater than 0"),
        ("tune.beta2=1", "tune.beta2=1: input should be less than 1"),
        ("embed.dtype=float64", "embed.dtype='float64': input should be 'auto', 'float32' or 'bfloat16'"),
        ("pretrain.arm=both", "pretrain.arm='both'"),
    ],
)
def test_a_value_out_of_range_is_named_with_what_is_allowed(override: str, words: str) -> None:
    assert words in _message(override)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("pair.min_cosine=0.9", "pair.max_cosine=0.8"), "min_cosine (0.9) must be below max_cosine (0.8)"),
        (("model.num_heads=5",), "num_heads (5) must be a multiple of num_kv_heads (2)"),
        (("pretrain.batch_rows=9",), "batch_rows (9) must be a multiple of"),
        (("tune.seq_len=4096",), "tune.seq_len (4096) is more than model.max_positions (1024)"),
        (
            ("tune.seq_len=4096", "tune.max_pair_len=2048"),
            "tune.max_pair_len (2048) is more than model.max_positions (1024)",
        ),
        (("tune.max_pair_len=1025",), "max_pair_len (1025) is more than seq_len (1024)"),
        (
            ("tune.condition=none",),
            "synthesize.condition=d1 gives d1 to an LM that tune.condition=none has tuned without",
        ),
        (
            ("ingest.development_share=0",),
            "pretrain.checkpoint=best chooses by the development split, and ingest.development_share is 0",
        ),
        (
            ("ingest.validation_share=0.9", "ingest.development_share=0.2"),
            "validation_share (0.9) and development_share (0.2) add up to more than 1",
        ),
        (("synthesize.max_tokens=1024",), "leaves no room for d1 in engine.max_model_len (1024)"),
    ],
)
def test_a_rule_between_settings_names_both_numbers(overrides: tuple[str, ...], words: str) -> None:
    assert words in _message(*overrides)


def test_a_setting_that_is_needed_is_asked_for(tmp_path: Path) -> None:
    tree = yaml.safe_load(SMALL.read_text())
    del tree["pretrain"]["total_tokens"]
    message = _message(path=_write(tmp_path, yaml.safe_dump(tree)))
    assert message.endswith("pretrain.total_tokens: this setting is needed and is not there")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold settings such as"),
        ("- a\n- b\n", "must hold settings such as"),
        ("ingest: [a, b", "cannot be read as YAML"),
        ("ingest: {input: !!python/object/apply:os.getcwd []}", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    assert words in _message(path=_write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert _message(path=tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: no such config file"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("pair.min_cosine", "an override is written section.key=value"),
        ("=3", "an override is written section.key=value"),
        ("pair..min_cosine=3", "an override is written section.key=value"),
        ("pair.min_cosine=[", "the value cannot be read"),
        ("run_dir.x=3", "run_dir is a value, not a section"),
    ],
)
def test_an_override_that_cannot_be_read_is_quoted(override: str, words: str) -> None:
    message = _message(override)
    assert words in message
    assert override in message or override.split("=")[0] in message


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones() -> None:
    config = load_config(SMALL, ["pair.min_cosine=0.7", "pair.min_cosine=0.8", "engine.resources.num_gpus=1"])
    assert config.pair.min_cosine == 0.8
    assert config.engine.resources.num_gpus == 1
    assert config.engine.resources.num_cpus == 2  # the file's, beside the changed one
    assert load_config(SMALL, ["ingest.input=[a.jsonl, b.jsonl]"]).ingest.input == ("a.jsonl", "b.jsonl")
    assert load_config(SMALL, ["ingest.group_column=null"]).ingest.group_column is None


def test_a_number_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    assert load_config(SMALL, ["pretrain.peak_lr=1e-4"]).pretrain.peak_lr == 1e-4
    text = SMALL.read_text().replace("peak_lr: 3e-3", "peak_lr: 2e-5")
    assert load_config(_write(tmp_path, text)).pretrain.peak_lr == 2e-5
    assert load_config(SMALL, ["run_dir=runs/1e"]).run_dir == "runs/1e"


def test_an_override_changes_one_user_of_a_yaml_alias(tmp_path: Path) -> None:
    tree = yaml.safe_load(SMALL.read_text())
    tree["tune"]["resources"] = tree["pretrain"]["resources"]  # dumped as one anchor with two users
    text = yaml.safe_dump(tree)
    assert "&id001" in text
    config = load_config(_write(tmp_path, text), ["tune.resources.num_workers=1"])
    assert config.tune.resources.num_workers == 1
    assert config.pretrain.resources.num_workers == 2


def test_a_config_survives_the_way_to_a_worker_and_cannot_be_changed() -> None:
    config = load_config(SMALL)
    assert Config.model_validate(config.model_dump(mode="json")) == config
    with pytest.raises(ValueError, match="frozen"):
        config.pair.min_cosine = 0.1  # type: ignore[misc]


def test_steps_are_rounded_up_to_whole_batches() -> None:
    # 1,000,000 / (16 x 512) = 122.07
    assert load_config(SMALL).pretrain.num_steps() == 123


@pytest.mark.parametrize("job", ["embed", "pipeline"])  # the pipeline imports every other job
def test_a_job_refuses_a_misspelt_setting_in_one_line_before_anything_heavy_is_imported(job: str) -> None:
    code = (
        "import sys, runpy, os\n"
        "sys.argv = sys.argv[1:]\n"
        "sys.path.insert(0, os.path.dirname(sys.argv[0]))\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    print(*sorted({'ray', 'torch', 'vllm', 'transformers', 'datasets', 'faiss'} & set(sys.modules)))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, f"jobs/{job}.py", "--config", "configs/demo.yaml", "embed.dtyp=3"],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == [
        "error: configs/demo.yaml: embed.dtyp=3: no such setting; did you mean embed.dtype?"
    ]
    assert ended.stdout.split() == []  # the heavy modules that were imported


@pytest.mark.parametrize(
    "key",
    [
        "run_dir",
        "artifacts.corpus",
        "tracking.tensorboard",
        "ingest.tokenizer",
        "embed.model",
        "pretrain.base",
        "synthesize.finished_of",
        "eval.questions",
        "eval.truth",
        "benchmarks.tasks.mine.file",
        "ingest.input.0",
        "decontaminate.evaluation_sets.0",
    ],
)
def test_the_home_folder_is_meant_by_its_sign_in_every_setting_that_is_a_place(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    name, _, number = key.rpartition(".")
    override = f"{name}=[~/mine]" if number == "0" else f"{key}=~/mine"
    value: Any = load_config(SMALL, [override]).model_dump()
    for part in key.split("."):
        value = value[int(part) if part == "0" else part]
    assert value == "/home/me/mine"


def test_settings_may_stand_before_options_and_behind_them(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--config", str(SMALL), "run_dir=/one", "--redo", "tune", "embed.max_tokens=7"]
    monkeypatch.setattr("sys.argv", ["jobs/tune.py", *words])
    command = parse_command("tune")
    assert (command.config.run_dir, command.config.embed.max_tokens, command.redo) == ("/one", 7, "tune")
