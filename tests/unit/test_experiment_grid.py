"""From an experiment's file to its graph: what is shared, what differs, what is refused before anything runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_experiment import small_grid

from sbp_ray.artifacts import MANIFEST
from sbp_ray.config import PairConfig
from sbp_ray.errors import SbpError
from sbp_ray.experiment.checks import refuse_made
from sbp_ray.experiment.costs import costs_of, planned_flops, planned_tokens, refuse_too_little_texts
from sbp_ray.experiment.grid import Grid
from sbp_ray.experiment.main import describe
from sbp_ray.model import num_parameters
from sbp_ray.nodes import Node
from sbp_ray.pairing.candidates import RELATED, judge_texts
from sbp_ray.text_supply import wanted_tokens

ALL = (
    "repetition",
    "sbp",
    "oracle",
    "random_pairs",
    "unconditional",
    "alone",
    "untuned",
    "own_embedder",
    "regularised",
    "in_context",
    "megadoc",
    "token_noise",
    "synthetic_first",
    "duplicates_kept",
)


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    """Lay out an experiment of these arms."""
    return partial(small_grid, tmp_path)


def numbers(grid: Grid) -> dict[str, int]:
    """How many nodes each stage has."""
    stages = [node.stage.name for node in grid.nodes.values()]
    return {stage: stages.count(stage) for stage in dict.fromkeys(stages)}


def last(grid: Grid, arm: str) -> Node:
    """The model of the arm's first training."""
    return next(training.model for training in grid.trainings if training.arm == arm)


def test_what_arms_share_is_there_once(plan) -> None:
    grid = plan("repetition", "sbp", seeds=[0, 1], shares=[0.1, 0.2])
    assert numbers(grid) == {
        "ingest": 1,
        "pretrain-repetition": 2,  # each seed's base LM is the repetition arm's
        "embed": 1,
        "neighbors": 1,
        "pair": 1,
        "tune": 2,
        "synthesize": 2,
        "pretrain-sbp": 4,
    }
    assert [(t.name, t.seed) for t in grid.trainings] == [
        *[("repetition", 0), ("repetition", 1)],
        *[("sbp 10 %", 0), ("sbp 20 %", 0), ("sbp 10 %", 1), ("sbp 20 %", 1)],
    ]


def test_one_synthesizer_may_serve_all_seeds(plan) -> None:
    found = numbers(plan("repetition", "sbp", seeds=[0, 1], shares=[0.1], synthesizer_per_seed=False))
    assert (found["tune"], found["synthesize"], found["pretrain-sbp"]) == (1, 1, 2)


def test_each_control_adds_only_what_differs(plan) -> None:
    before = numbers(plan("repetition", "sbp", seeds=[0], shares=[0.1]))

    def added(arm: str) -> set[str]:
        after = numbers(plan("repetition", "sbp", arm, seeds=[0], shares=[0.1]))
        return {stage for stage in after if after[stage] > before.get(stage, 0)}

    assert added("random_pairs") == {"pair", "tune", "synthesize", "pretrain-sbp"}
    assert added("unconditional") == {"synthesize", "pretrain-sbp"}
    assert added("alone") == {"tune", "synthesize", "pretrain-sbp"}
    assert added("untuned") == {"synthesize", "pretrain-sbp"}
    assert added("own_embedder") == {"embed", "neighbors", "pair", "tune", "synthesize", "pretrain-sbp"}
    assert added("regularised") == {"pretrain-repetition"}
    assert added("oracle") == {"ingest", "pretrain-repetition"}


def test_related_documents_in_a_row_take_the_pairs_and_no_synthesizer_and_go_with_sbp(plan) -> None:
    """All that the pairs were made from is then among the ancestors that the arm is charged for."""
    both = {"like": "sbp", "overrides": ["pretrain.in_context=true", "mixture.megadocs=true"]}
    grid = plan(seeds=[0], shares=[0.1], arms={"repetition": {}, "in_context": {}, "sbp": {}, "both": both})
    alone, together, sbp = (last(grid, arm) for arm in ("in_context", "both", "sbp"))
    assert [*alone.inputs] == ["corpus", "pairs"]
    assert {node.stage.name for node in alone.ancestry().values()} == {
        *("ingest", "embed", "neighbors", "pair", "pretrain-repetition")
    }
    assert [*together.inputs] == ["corpus", "synthetic", "pairs"]
    assert together.inputs["synthetic"] is sbp.inputs["synthetic"]
    assert together.inputs["pairs"] is alone.inputs["pairs"]
    base_lm = sbp.inputs["synthetic"].inputs["synthesizer"].inputs["base_lm"]
    assert [*base_lm.inputs] == ["corpus"]


OUTSIDE = "synthesize.rephrase={model: m, resources: {base_url: u, dollars_per_million_output_tokens: 2}}"


def test_an_outside_model_writes_without_a_synthesizer_and_its_price_stands_apart(plan) -> None:
    """A million tokens written outside, at two dollars; of ours no FLOPs but those of the embedder."""
    pairs = {"like": "rephrase", "overrides": [OUTSIDE, "synthesize.rephrase.of=pair"]}
    arms = {"repetition": {}, "rephrase": {"overrides": [OUTSIDE]}, "of_pairs": pairs}
    grid = plan(seeds=[0], shares=[0.038], arms=arms)
    text, of_pairs = (last(grid, arm).inputs["synthetic"] for arm in ("rephrase", "of_pairs"))
    assert [*text.inputs] == ["corpus", "embeddings"]
    assert [*of_pairs.inputs] == ["corpus", "embeddings", "pairs"]
    assert planned_flops(text) is None
    assert planned_tokens(text) == 100 * 384
    describe(grid)
    finish(text, outside={"input_tokens": 5, "output_tokens": 10**6}, prompt_tokens=7, tokens_generated=9)
    cost = costs_of([text], room={"CPU": 4}, dollars_per_hour=0, lost_hours={})[text.key]
    assert (cost.flops, cost.outside_dollars) == (0.0, 2.0)


def test_the_arms_differ_in_the_settings_they_are_named_for(plan) -> None:
    grid = plan(*ALL, seeds=[7], shares=[0.1], oracle_times=3)
    base, oracle = last(grid, "repetition"), last(grid, "oracle")
    corpus, larger = base.inputs["corpus"], oracle.inputs["corpus"]
    assert larger.config.ingest.max_train_documents == 300
    assert larger.config.ingest.tokenizer == f"{corpus.config.run_dir}/tokenizer"
    assert corpus.key in larger.needs
    assert last(grid, "regularised").config.pretrain.weight_decay == pytest.approx(1.0)
    for arm, condition in (("unconditional", "none"), ("untuned", "continue"), ("sbp", "d1"), ("alone", "none")):
        synthesis = last(grid, arm).inputs["synthetic"]
        assert synthesis.config.synthesize.condition == condition
        assert (synthesis.inputs["synthesizer"] == base) == (arm in ("unconditional", "untuned"))
    related, alone = (last(grid, arm).inputs["synthetic"].inputs["synthesizer"] for arm in ("sbp", "alone"))
    assert (related.config.tune.condition, alone.config.tune.condition) == ("d1", "none")
    assert alone.inputs == related.inputs  # the same pairs, the same base LM
    own = next(node for node in grid.nodes.values() if node.config.embed.pooling == "mean_of_states")
    assert own.config.embed.model == f"{base.config.run_dir}/model"
    assert base.key in own.needs
    assert {base.config.pretrain.seed, last(grid, "sbp").config.tune.seed} == {7}


def test_every_control_has_every_share_at_the_budget_of_sbp(plan) -> None:
    """122.07 steps of 8,192 positions are 123, of which a tenth and two fifths are 100,762 and 403,046 positions."""
    arms = ("repetition", "regularised", "sbp", "unconditional", "alone", "random_pairs")
    grid = plan(*arms, seeds=[0], shares=[0.1, 0.4])
    models = {training.name: training.model for training in grid.trainings}
    assert list(models) == [*arms[:2], *(f"{arm} {share} %" for arm in arms[2:] for share in (10, 40))]
    assert {planned_tokens(model) for model in models.values()} == {123 * 8192}
    wanted = {model.config.mixture.share(): wanted_tokens(model) for name, model in models.items() if "%" in name}
    assert wanted == {0.1: 100_762, 0.4: 403_046}
    base_lm, texts = models["repetition"], {}
    for arm in arms[2:]:
        texts[arm] = models[f"{arm} 10 %"].inputs["synthetic"]
        assert models[f"{arm} 40 %"].inputs["synthetic"] is texts[arm]
    writers = {arm: text.inputs["synthesizer"] for arm, text in texts.items()}
    assert writers.pop("unconditional") is base_lm
    assert {writer.inputs["base_lm"].key for writer in writers.values()} == {base_lm.key}
    pairs = {arm: writer.inputs["pairs"] for arm, writer in writers.items()}
    assert pairs["alone"] is pairs["sbp"] is not pairs["random_pairs"]
    assert pairs["random_pairs"].inputs["neighbors"] is pairs["sbp"].inputs["neighbors"]
    assert numbers(grid) == {
        **{"ingest": 1, "pretrain-repetition": 2, "embed": 1, "neighbors": 1, "pair": 2, "tune": 3},
        **{"synthesize": 4, "pretrain-sbp": 8},
    }


def settings_of(grid: Grid, arm: str) -> dict[str, Any]:
    """All settings that decide an arm's first model, by stage."""
    found: dict[str, Any] = {}
    for node in last(grid, arm).ancestry().values():
        for section, settings in node.recipe["settings"].items():
            found |= {f"{node.stage.name}: {section}.{name}": value for name, value in settings.items()}
    return found


@pytest.mark.parametrize(
    ("arm", "beside", "differs"),
    [
        ("random_pairs", "sbp", {"pair: pair.source"}),
        ("unconditional", "sbp", {"synthesize: synthesize.condition"}),
        ("alone", "sbp", {"tune: tune.condition", "synthesize: synthesize.condition"}),
        ("untuned", "sbp", {"synthesize: synthesize.condition"}),
        ("own_embedder", "sbp", {"embed: embed.pooling", "embed: embed.model"}),
        ("regularised", "repetition", {"pretrain-repetition: pretrain.weight_decay"}),
        ("in_context", "repetition", {"pretrain-repetition: pretrain.in_context"}),
        ("megadoc", "sbp", {"pretrain-sbp: mixture.megadocs"}),
        ("token_noise", "repetition", {"pretrain-repetition: pretrain.token_noise"}),
        ("synthetic_first", "sbp", {"pretrain-sbp: mixture.real_tail"}),
        (
            "duplicates_kept",
            "sbp",
            {"pair: pair.max_jaccard", "pair: pair.max_containment", "pair: pair.max_content_overlap"}
            | {"synthesize: synthesize.max_copy", "synthesize: synthesize.max_jaccard"},
        ),
        ("oracle", "repetition", {"ingest: ingest.max_train_documents", "ingest: ingest.tokenizer"}),
    ],
)
def test_a_control_differs_in_one_thing(plan, arm: str, beside: str, differs: set[str]) -> None:
    """Of the stages that both have; without tuning, neither pairs nor a synthesizer are made at all."""
    grid = plan(*ALL, seeds=[7], shares=[0.1], oracle_times=3)
    own, other = settings_of(grid, arm), settings_of(grid, beside)
    stages = set.intersection(*({name.split(":")[0] for name in found} for found in (own, other)))
    both = {name for name in own.keys() | other.keys() if name.split(":")[0] in stages}
    assert {name for name in both if own.get(name) != other.get(name)} == differs


def test_where_duplicates_are_kept_no_two_texts_are_too_much_alike(plan) -> None:
    """Equal texts; one in the other; an update that has all content words; a third each."""
    cfg = last(plan("repetition", "duplicates_kept", seeds=[0], shares=[0.1]), "duplicates_kept").inputs["synthetic"]
    jaccard_N, containment_N, overlap_N = np.array([[1, 0.2, 0.1, 0.3], [1, 1, 0.2, 0.3], [1, 1, 1, 0.3]], np.float32)
    assert judge_texts(jaccard_N, containment_N, overlap_N, cfg.config.pair).tolist() == [RELATED] * 4
    assert (judge_texts(jaccard_N, containment_N, overlap_N, PairConfig()) == RELATED).tolist() == [False] * 3 + [True]


def test_nodes_come_after_what_they_need_in_folders_named_after_what_they_are_made_from(plan) -> None:
    grid = plan(*ALL, seeds=[0], shares=[0.1])
    seen: set[str] = set()
    for key, node in grid.nodes.items():
        assert set(node.needs) <= seen
        assert node.config.run_dir.endswith(f"run/artifacts/{key}")
        assert node.config.artifacts[node.stage.writes] == node.config.run_dir
        assert key == f"{node.stage.writes}-{node.fingerprint[:8]}"
        seen.add(key)
    again = plan(*ALL, seeds=[0], shares=[0.1])
    assert list(again.nodes) == list(grid.nodes)
    changed = plan(*ALL, seeds=[0], shares=[0.1], overrides=("base.tune.peak_lr=1e-4",))
    same = {node.stage.name for key, node in changed.nodes.items() if key in grid.nodes}
    assert same == {"ingest", "pretrain-repetition", "embed", "neighbors", "pair", "synthesize", "pretrain-sbp"}
    assert {key.partition("-")[0] for key in changed.nodes if key not in grid.nodes} == {
        "synthesizer",
        "synthetic",
        "lm",
    }


def test_a_second_round_goes_on_from_the_joint_lm(plan) -> None:
    grid = plan("repetition", "sbp", seeds=[0], shares=[0.1], rounds=2)
    first, second = (training.model for training in grid.trainings if training.arm == "sbp")
    writer = second.inputs["synthetic"].inputs["synthesizer"]
    assert writer.inputs["base_lm"] == first
    assert [training.name for training in grid.trainings][1:] == ["sbp 10 %", "sbp 10 % round 2"]


def test_rounds_share_one_chain_of_synthesizers_and_the_base_lm_writes_once(plan) -> None:
    found = numbers(plan("repetition", "sbp", seeds=[0, 1], shares=[0.1], rounds=2, synthesizer_per_seed=False))
    assert (found["tune"], found["synthesize"], found["pretrain-sbp"]) == (2, 2, 4)
    grid = plan("repetition", "unconditional", seeds=[0, 1], shares=[0.1], rounds=2, synthesizer_per_seed=False)
    assert (numbers(grid)["synthesize"], numbers(grid)["pretrain-sbp"]) == (1, 2)
    assert [training.round for training in grid.trainings] == [1] * 4
    last_seed_first = plan("repetition", "sbp", seeds=[1, 0], shares=[0.1], rounds=2, synthesizer_per_seed=False)
    assert numbers(last_seed_first)["pretrain-sbp"] == 4


def test_an_arm_of_ones_own_starts_from_a_built_in_one(plan) -> None:
    arms = {"repetition": {}, "hot": {"like": "sbp", "overrides": ["synthesize.temperature=1.3"], "shares": [0.3]}}
    grid = plan(seeds=[0], arms=arms)
    assert [training.name for training in grid.trainings] == ["repetition", "hot 30 %"]
    assert last(grid, "hot").inputs["synthetic"].config.synthesize.temperature == 1.3


def test_a_larger_lm_writes_for_an_lm_of_the_bases_size(plan) -> None:
    arms = {"repetition": {}, "sbp": {}, "large": {"like": "sbp", "writer": ["model.num_layers=5", "pretrain.seed=9"]}}
    grid = plan(seeds=[3], shares=[0.1], arms=arms)
    small, large = (last(grid, arm).inputs["synthetic"] for arm in ("sbp", "large"))
    tuned = large.inputs["synthesizer"]
    base_lm = tuned.inputs["base_lm"]
    assert base_lm.config.model.num_layers == 5
    assert base_lm.config.pretrain.seed == 3  # the seed's, as everywhere
    assert last(grid, "large").config.model == last(grid, "sbp").config.model
    deeper = num_parameters(base_lm.config.model, 8192)
    assert planned_flops(large) == 2 * deeper * 100 * 384 > planned_flops(small)
    assert numbers(grid)["pair"] == 1


def test_arms_of_other_corpus_sizes_have_the_tokenizer_of_the_base(plan) -> None:
    arms = {"repetition": {}, "half": {"like": "repetition", "corpus_times": 0.5}, "oracle": {}}
    grid = plan(seeds=[0], arms=arms, oracle_times=4)
    base, half, oracle = (last(grid, arm).inputs["corpus"] for arm in arms)
    assert [node.config.ingest.max_train_documents for node in (base, half, oracle)] == [100, 50, 400]
    assert half.config.ingest.tokenizer == oracle.config.ingest.tokenizer == f"{base.config.run_dir}/tokenizer"
    assert base.key in half.needs


def test_the_plan_tells_tokens_flops_and_users(plan) -> None:
    grid = plan("repetition", "sbp", seeds=[0], shares=[0.1])
    base = last(grid, "repetition")
    assert planned_tokens(base) == 123 * 16 * 512  # 1,000,000 / 8,192 positions in a step = 122.07
    parameters = num_parameters(base.config.model, 8192)
    assert planned_flops(base) == 6 * parameters * 123 * 16 * 512
    synthesis = last(grid, "sbp").inputs["synthetic"]
    assert planned_tokens(synthesis) == 100 * 384  # a document for each of 100, of at most 384 tokens
    text = describe(grid)
    [line] = [line for line in text.splitlines() if line.startswith(base.key)]
    assert line.split()[1:3] == ["pretrain-repetition", "1.0"]
    assert line.endswith("repetition, sbp")


def test_what_is_finished_makes_the_plan_more_certain(plan) -> None:
    """Of 100 documents that there may be, 90 are, of 50 tokens; 200 pairs are 2 x 50 tokens and three marks each."""
    grid = plan("repetition", "sbp", seeds=[0], shares=[0.034])
    synthesis = last(grid, "sbp").inputs["synthetic"]
    tuned = synthesis.inputs["synthesizer"]
    assert planned_tokens(tuned) is None and planned_flops(tuned) is None
    assert "without what depends on the pairs" in describe(grid)
    finish(tuned.inputs["corpus"], train={"documents": 90, "tokens": 4500})
    assert planned_tokens(tuned) is None
    assert planned_tokens(synthesis) == 90 * 384
    refuse_too_little_texts(grid)  # 3.4 % of 1,007,616 positions are 34,259, and there can be 34,740
    finish(tuned.inputs["pairs"], train={"pairs": 200})
    assert planned_tokens(tuned) == 200 * 103
    assert planned_flops(tuned) == 6 * num_parameters(tuned.config.model, 8192) * 200 * 103
    [line] = [line for line in describe(grid).splitlines() if line.startswith(tuned.key)]
    assert line.split()[:4] == [tuned.key, "tune", "≈20.6", "k"]
    assert "depends on the pairs" not in describe(grid)
    with pytest.raises(SbpError, match=r"can write 34,740 at most"):
        refuse_too_little_texts(plan("repetition", "sbp", seeds=[0], shares=[0.035]))


def test_an_arm_may_choose_samples_by_what_d1_is_worth_and_pays_for_scoring_them(plan) -> None:
    """Three samples of each of 100 d1 are written, of at most 384 tokens, and each is scored with d1 and without."""
    best = {"like": "sbp", "overrides": ["synthesize.samples_per_document=3", "synthesize.keep_best=1"]}
    about = {"like": "sbp", "overrides": ["synthesize.min_gain_nats=0.02"]}
    arms = {"repetition": {}, "sbp": {}, "best": best, "about": about}
    grid = plan(seeds=[0], shares=[0.038], arms=arms)
    plain, best_of_3, filtered = (last(grid, arm).inputs["synthetic"] for arm in ("sbp", "best", "about"))
    assert len({plain.key, best_of_3.key, filtered.key}) == 3
    assert plain.inputs == best_of_3.inputs == filtered.inputs  # one synthesizer
    assert planned_tokens(best_of_3) == 3 * 100 * 384
    assert planned_flops(best_of_3) == 3 * 3 * planned_flops(plain)
    refuse_too_little_texts(grid)
    with pytest.raises(SbpError, match=r"arms\.best: a share of 0\.04 wants .* can write 38,600 at most"):
        refuse_too_little_texts(plan(seeds=[0], shares=[0.04], arms={"repetition": {}, "best": best}))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seeds": [0, 1, 0]}, "seeds: 0 is there twice: take one out"),
        ({"seeds": []}, "seeds: there is none"),
        ({"shares": [0.1, 0.1]}, "shares: 0.1 is there twice"),
        ({"shares": [1.5]}, "shares.0=1.5: input should be less than 1"),
        ({"arms": {"sbp": {}}}, "arms: repetition is missing"),
        ({"arms": {"repetition": {}, "orcale": {}}}, "arms.orcale: no such arm; did you mean oracle?"),
        ({"arms": {"repetition": {}, "x": {"like": "spb"}}}, "arms.x.like=spb: no such arm; did you mean sbp?"),
        ({"arms": {"repetition": {}, "sbp": {"overides": []}}}, "no such setting; did you mean arms.sbp.overrides?"),
        (
            {"arms": {"repetition": {}, "sbp": {"overrides": ["tune.peak_l=1"]}}},
            "arms.sbp: tune.peak_l=1: no such setting; did you mean tune.peak_lr?",
        ),
        (
            {"arms": {"repetition": {}, "again": {"like": "repetition"}}},
            "arms: again comes to the same training as repetition",
        ),
        (
            {"arms": {"repetition": {}, "sbp": {"overrides": ["ingest.vocab_size=300"]}}},
            "arms.sbp: ingest.vocab_size must be that of base",
        ),
        (
            {"arms": {"repetition": {}, "sbp": {"writer": ["tune.num_epochs=2"]}}},
            "arms.sbp.writer: tune.num_epochs=2: it changes model or pretrain: put others in overrides",
        ),
        (
            {"arms": {"repetition": {}, "sbp": {"writer": ["model.depht=2"]}}},
            "arms.sbp.writer: model.depht=2: no such setting; did you mean model.depth?",
        ),
        (
            {"arms": {"repetition": {}, "x": {"like": "in_context", "overrides": ["mixture.megadocs=true"]}}},
            "arms.x: mixture.megadocs=true: it is of synthetic text, and in_context reads none: make the arm like one "
            "that does, such as sbp",
        ),
        (
            {"arms": {"repetition": {}, "x": {"like": "unconditional", "overrides": ["mixture.megadocs=true"]}}},
            "mixture.megadocs puts d1 behind what was written from it, and synthesize.condition=none writes from "
            "nothing: take one of them out",
        ),
        (
            {"arms": {"repetition": {}, "rephrase": {}}},
            "arms.rephrase: synthesize.rephrase names no outside model: put model and resources.base_url into its",
        ),
        (
            {"arms": {"repetition": {}, "sbp": {"overrides": [OUTSIDE]}}},
            "arms.sbp: synthesize.rephrase has an outside model write, and sbp is an arm whose text our own LM writes",
        ),
        (
            {"arms": {"repetition": {}, "x": {"like": "token_noise", "overrides": ["pretrain.token_noise=1"]}}},
            "pretrain.token_noise=1: input should be less than 1",
        ),
        (
            {"arms": {"repetition": {}, "x": {"like": "repetition", "overrides": ["pretrain.noise_masks=true"]}}},
            "noise_masks says how tokens are hidden, and token_noise how many: set token_noise too",
        ),
        (
            {
                "arms": {
                    "repetition": {},
                    "half": {"like": "repetition", "overrides": ["ingest.max_train_documents=50"]},
                }
            },
            "arms.half: ingest.max_train_documents must be that of base: say how much of it by corpus_times",
        ),
        (
            {"arms": {"repetition": {}, "x": {"like": "repetition", "overrides": ["ingest.tokenizer=other"]}}},
            "arms.x: ingest.tokenizer must be that of base: arms are compared on one split of one corpus",
        ),
        (
            {"arms": {"repetition": {}, "x": {"like": "sbp", "overrides": ["decontaminate.ngram_words=5"]}}},
            "arms.x: decontaminate must be that of base",
        ),
        (
            {"arms": {"repetition": {"tuned": True}}, "sweep": {"settings": {"pretrain.weight_decay": [0.3]}}},
            "arms.repetition.tuned: it is what the others are compared with: add the arm tuned",
        ),
        (
            {"arms": {"repetition": {}, "regularised": {"shares": [0.1]}}},
            "arms.regularised.shares: it reads no synthetic text: take it out",
        ),
        (
            {"arms": {"repetition": {"writer": ["model.num_layers=2"]}}},
            "arms.repetition.writer: it reads no synthetic text: take it out",
        ),
        ({"base": "nowhere.yaml"}, "nowhere.yaml: no such config file"),
        ({"run_dir": "s3://bucket/x"}, "is a local or a shared one"),
    ],
)
def test_bad_input_is_one_line(plan, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SbpError) as error:
        plan("repetition", "sbp", **settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_experiment_makes_its_artifacts_itself(plan) -> None:
    with pytest.raises(SbpError, match=r"base\.artifacts: an experiment makes its own"):
        plan("repetition", overrides=("base.artifacts={corpus: /elsewhere/1_corpus}",))


def test_an_oracle_of_a_whole_corpus_is_refused(plan) -> None:
    with pytest.raises(SbpError, match=r"arms.oracle: base has all documents there are"):
        plan("repetition", "oracle", overrides=("base.ingest.max_train_documents=null",))


def test_a_missing_input_file_is_refused(plan, tmp_path: Path) -> None:
    with pytest.raises(SbpError, match=r"gone.jsonl"):
        plan("repetition", overrides=(f"base.ingest.input=[{tmp_path}/gone.jsonl]",))


def test_a_share_that_no_synthesis_could_fill_is_refused(plan) -> None:
    """The whole run has 1,007,616 positions, and 100 documents of 384 tokens and two marks are 38,600."""
    refuse_too_little_texts(plan("repetition", "sbp", shares=[0.038]))  # 38,289
    with pytest.raises(SbpError, match=r"a share of 0.04 wants 40,305 synthetic tokens, .* can write 38,600 at most"):
        refuse_too_little_texts(plan("repetition", "sbp", shares=[0.04]))


def test_a_share_that_d1_fills_too_is_not_refused(plan) -> None:
    """Of megadocs: beside 38,600 tokens at most, or 30,000 and 200 marks that were written, are 100 d1."""
    grid = plan("repetition", "megadoc", seeds=[0], shares=[0.04])
    refuse_too_little_texts(grid)
    text = next(node for node in grid.nodes.values() if node.stage.job == "synthesize")
    finish(text, samples=100, documents=100, tokens=30_000, drops={})
    assert refuse_made(grid, text.key) == {}


def finish(node: Node, **stats: Any) -> None:
    node.artifact.write_json(MANIFEST, {"stats": stats, "wall_s": 1})


@pytest.fixture
def copying(plan) -> tuple[Grid, Node, Node]:
    """A control of 10,000 samples for two shares, its corpus finished; the sample that comes first; the text."""
    changes = ("base.synthesize.samples_per_document=100",)
    grid = plan("repetition", "unconditional", seeds=[0], shares=[0.02, 0.3], overrides=changes)
    sample, text = (node for node in grid.nodes.values() if node.stage.job == "synthesize")
    finish(text.inputs["corpus"], train={"documents": 100})
    return grid, sample, text


def test_a_large_text_is_made_after_a_sample_that_says_whether_it_will_be_enough(copying) -> None:
    """5 of 100 documents are no copies: 190 tokens and 10 marks, so 10,000 give 20,000. Shares of 1,007,616 positions
    want 20,152, which padding makes room for, and 302,285, fifteen times as many as 100 samples a document give."""
    grid, sample, text = copying
    own = sample.config.synthesize
    assert (own.num_documents, own.samples_per_document, own.condition) == (100, 1, "none")
    assert sample.key in text.needs
    finish(sample, samples=100, documents=5, tokens=190, drops={"too_short": 5, "copy_of_corpus": 90})
    [key, why] = next(iter(refuse_made(grid, sample.key).items()))
    assert grid.nodes[key].config.mixture.share() == 0.3
    assert why == (
        "a share of 0.3 wants 302,285 synthetic tokens and a first sample of 100 says that 20,000 will be written, "
        "which are read once (90 of 100 samples were dropped as copy of corpus): raise "
        "synthesize.samples_per_document to 1,512 or more, or lower the share"
    )
    assert len(refuse_made(grid, sample.key)) == 1


def test_a_control_that_writes_copies_alone_is_known_from_its_sample(copying) -> None:
    grid, sample, text = copying
    finish(sample, samples=100, documents=0, tokens=0, drops={"copy_of_corpus": 100})
    dead = refuse_made(grid, sample.key)
    assert set(dead) == {text.key, *(training.model.key for training in grid.trainings[1:])}
    finish(text, samples=10_000, documents=9_000, tokens=4_000_000, drops={})
    assert refuse_made(grid, sample.key) == {}  # what is there counts


def test_a_text_of_few_samples_is_its_own_sample(plan) -> None:
    assert numbers(plan("repetition", "sbp", seeds=[0], shares=[0.1]))["synthesize"] == 1
    best_of = ("base.synthesize.samples_per_document=128", "base.synthesize.keep_best=1")
    sample, _ = (
        n for n in plan("repetition", "sbp", seeds=[0], overrides=best_of).nodes.values() if n.stage.job == "synthesize"
    )
    assert (sample.config.synthesize.num_documents, sample.config.synthesize.samples_per_document) == (2, 128)
