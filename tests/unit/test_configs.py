"""Every config under configs/ loads, and the three of the paper come to the paper's numbers."""

import re
from pathlib import Path

import pytest

from sbp_ray.cluster_limits import largest_cluster
from sbp_ray.config import Config
from sbp_ray.config_file import load_config, read_yaml
from sbp_ray.experiment.costs import planned_tokens, refuse_too_little_texts
from sbp_ray.experiment.grid import plan_grid
from sbp_ray.experiment.settings import load_experiment
from sbp_ray.input_files import DatasetName
from sbp_ray.model import num_parameters

REPO = Path(__file__).parents[2]
EXPERIMENTS = sorted((REPO / "configs").glob("experiment-*.yaml"))
CONFIGS = sorted({*(REPO / "configs").glob("*.yaml")} - {*EXPERIMENTS})
PAPER = ("paper-3b-200b", "paper-3b-1t", "paper-6b-1t")


def _load(name: str) -> Config:
    return load_config(REPO / "configs" / f"{name}.yaml")


def _parameters(config: Config) -> int:
    assert config.model.vocab_size is not None
    return num_parameters(config.model, config.model.vocab_size)


def test_the_configs_are_all_here() -> None:
    assert {path.stem for path in CONFIGS} == {"demo", "squad", "h200", *PAPER}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_shipped_experiment_can_be_planned(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    experiment = load_experiment(str(path), [])
    grid = plan_grid(experiment)
    refuse_too_little_texts(grid)
    names = {training.name for training in grid.trainings}
    assert len(grid.trainings) == len(names) * len(experiment.seeds)


def test_an_outside_model_joins_the_rivals_as_their_file_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    [line] = re.findall(r"^#   '(arms\.rephrase=.*)'$", (REPO / "configs/experiment-rivals.yaml").read_text(), re.M)
    grid = plan_grid(load_experiment("configs/experiment-rivals.yaml", [line]))
    text = next(training.model.inputs["synthetic"] for training in grid.trainings if training.arm == "rephrase")
    assert text.config.synthesize.rephrase is not None
    assert [*text.inputs] == ["corpus", "embeddings"]


def test_the_rivals_share_the_corpus_and_the_texts_of_the_known_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    rivals, bios = (plan_grid(load_experiment(f"configs/experiment-{name}.yaml", [])) for name in ("rivals", "bios"))
    shared = {node.stage.name for key, node in rivals.nodes.items() if key in bios.nodes}
    assert {"ingest", "pretrain-repetition", "pair", "tune", "synthesize", "pretrain-sbp"} <= shared


def test_settings_of_a_base_that_is_a_file_are_changed_on_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    for name, before in (("rivals", 960_000), ("seeds", 960_000)):
        path = f"configs/experiment-{name}.yaml"
        assert load_experiment(path, []).base_config().pretrain.total_tokens == before
        changed = load_experiment(path, ["base.pretrain.total_tokens=480_000"]).base_config()
        assert (changed.pretrain.total_tokens, changed.ingest.vocab_size) == (480_000, 1024)


def test_rows_of_megadocs_are_longer_and_a_step_and_a_run_have_as_many_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    for name in ("rivals", "yardstick"):
        models = {t.arm: t.model for t in plan_grid(load_experiment(f"configs/experiment-{name}.yaml", [])).trainings}
        long, plain = (models[arm].config.pretrain for arm in ("megadoc", "sbp"))
        assert long.seq_len > plain.seq_len
        assert long.seq_len * long.batch_rows == plain.seq_len * plain.batch_rows
        assert long.num_positions() == plain.num_positions()


def test_the_yardstick_is_a_hundred_million_tokens_and_needs_no_network_to_be_planned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPO)
    config = load_experiment("configs/experiment-yardstick.yaml", []).base_config()
    assert config.pretrain.num_steps() == 12_208  # 1,600,000,000 / (64 x 2048) = 12,207.03
    assert 100e6 < 700 * (config.ingest.max_train_documents or 0) < 200e6
    [name] = config.ingest.input
    assert DatasetName.parse(name) == ("HuggingFaceFW/fineweb", "sample-10BT", "main")


def test_the_nano_experiment_is_sized_for_two_cores_and_two_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    experiment = load_experiment("configs/experiment-nano.yaml", [])
    grid = plan_grid(experiment)
    nodes = {job: [node for node in grid.nodes.values() if node.stage.job == job] for job in ("pretrain", "synthesize")}
    trained = sum(planned_tokens(node) or 0 for node in nodes["pretrain"])
    written = sum(250 / 384 * (planned_tokens(node) or 0) for node in nodes["synthesize"])  # few reach max_tokens
    # On busy cores: both together 8,000 tokens/s to train 0.7 M parameters with their held-out losses, an engine 700 to
    # write, 120 s to start it, 15 s to start a training.
    seconds = trained / 8000 + written / 700 + 120 * len(nodes["synthesize"]) + 15 * len(nodes["pretrain"]) / 2
    assert seconds < 2 * 3600
    assert len(experiment.seeds) == 3


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid_and_a_pair_of_full_rows_fits(path: Path) -> None:
    config = load_config(path)
    assert config.tune.longest_document()[1] >= 2 * config.pretrain.seq_len
    assert config.synthesize.max_tokens <= config.engine.max_model_len // 2


@pytest.mark.parametrize("name", ["squad", "h200"])
def test_the_runnable_configs_name_the_bundled_corpus(name: str) -> None:
    config = _load(name)
    assert all((REPO / pattern).is_file() for pattern in config.ingest.input)
    assert config.eval.questions is not None
    assert (REPO / config.eval.questions).is_file()


def test_a_known_world_comes_with_its_truth() -> None:
    for config in (_load("demo"), load_experiment("configs/experiment-bios.yaml", []).base_config()):
        assert config.eval.truth is not None and (REPO / config.eval.truth).is_file()
        assert [pattern for pattern in config.ingest.input if not (REPO / pattern).is_file()] == []


def test_the_h200_model_has_between_100_and_300_million_parameters() -> None:
    config = _load("h200")
    # 16 x (768*64*(24+8) + 3*768*2304) + 32,768*768 (tied) + norms
    assert num_parameters(config.model, config.ingest.vocab_size) == pytest.approx(135.3e6, rel=1e-3)
    assert config.pretrain.num_steps() == 763  # 100,000,000 / (64 x 2048) = 762.9


# The paper's table, worked out by hand. A layer: attention width x 128 x (2 heads + 16), MLP 3 x width x ffn.
#   3B: 26 x (25,165,824 + 74,317,824) = 2.587 B, + 2 x 49,152 x 3072 = 0.302 B, + norms 0.2 M: 2.889 B
#   6B: 32 x (41,943,040 + 132,120,576) = 5.570 B, + 2 x 49,152 x 4096 = 0.403 B, + norms 0.3 M: 5.973 B
# Steps: 200 B / (2048 x 4096) = 23,841.9; 1 T / 8,388,608 = 119,209.3
@pytest.mark.parametrize(
    ("name", "parameters", "steps", "total", "synthetic", "unique", "passes"),
    [
        ("paper-3b-200b", 2_888_734_208, 23_842, 200e9, 75e9, 10e9, 12.5),
        ("paper-3b-1t", 2_888_734_208, 119_210, 1e12, 125e9, 50e9, 17.5),
        ("paper-6b-1t", 5_972_963_328, 119_210, 1e12, 250e9, 50e9, 15.0),
    ],
)
def test_a_paper_config_has_the_papers_size_steps_and_budget(
    name: str, parameters: int, steps: int, total: float, synthetic: float, unique: float, passes: float
) -> None:
    config = _load(name)
    assert _parameters(config) == parameters
    assert config.pretrain.num_steps() == steps
    assert config.pretrain.total_tokens == total
    assert config.mixture.synthetic_share * total == synthetic
    assert (total - synthetic) / unique == passes
    assert config.pretrain.batch_rows * config.pretrain.seq_len == 8_388_608


@pytest.mark.parametrize("name", PAPER)
def test_enough_is_generated_for_the_synthetic_budget(name: str) -> None:
    config = _load(name)
    unique = 10e9 if name.endswith("200b") else 50e9
    made = config.synthesize.samples_per_document * unique  # an average document for an average document
    wanted = config.mixture.synthetic_share * config.pretrain.total_tokens
    assert wanted <= made <= 1.25 * wanted


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_schedule(name: str) -> None:
    pretrain = _load(name).pretrain
    assert (pretrain.peak_lr, pretrain.final_lr, pretrain.warmup_share) == (1e-2, 5e-5, 0.05)
    assert (pretrain.batch_rows, pretrain.seq_len) == (2048, 4096)


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_config_fits_the_shipped_cluster(name: str) -> None:
    config = _load(name)
    most = largest_cluster(read_yaml(REPO / "cluster.yaml"))
    for section in (
        config.ingest,
        config.embed,
        config.neighbors,
        config.pair,
        config.pretrain,
        config.tune,
        config.eval,
    ):
        wanted = section.resources
        assert wanted.num_workers * wanted.num_gpus <= most["GPU"]
        assert wanted.num_workers * wanted.num_cpus <= most["CPU"]
    assert config.engine.resources.max_replicas * config.engine.resources.tensor_parallel_size <= most["GPU"]


@pytest.mark.parametrize("name", PAPER)
def test_each_value_of_a_paper_config_names_its_source(name: str) -> None:
    text = (REPO / "configs" / f"{name}.yaml").read_text()
    values = [line for line in text.splitlines() if re.match(r"\s*\w+: [^#\s]", line)]
    assert len(values) > 50
    assert [line for line in values if not re.search(r" # (paper|ours|follows)\b", line)] == []
