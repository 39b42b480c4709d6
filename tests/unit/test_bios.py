"""A known world: drawn from a seed, and read back from its texts."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sbp_ray.bios.statements import StatementReader
from sbp_ray.bios.truth import Fact, Truth, read_truth
from sbp_ray.bios.world import DOCUMENTS, QUESTIONS, TRUTH, draw_documents, draw_truth, write_world
from sbp_ray.bios.world_settings import BiosConfig
from sbp_ray.config_file import read_yaml, settings_of
from sbp_ray.errors import SbpError
from tests.small_world import small_world

REPO = Path(__file__).parents[2]
WORLD = REPO / "data/bios/world.yaml"


def _settings(*overrides: str) -> BiosConfig:
    return settings_of(BiosConfig, read_yaml(WORLD), overrides, where="world")


def test_what_is_bundled_is_drawn_anew_to_the_byte(tmp_path: Path) -> None:
    counts = write_world(_settings(f"out={tmp_path}"))
    assert counts == {"entities": 200, "facts": 2000, "documents": 7500}
    for name in (DOCUMENTS, QUESTIONS):
        assert gzip.decompress((tmp_path / name).read_bytes()) == gzip.decompress((WORLD.parent / name).read_bytes())
    assert (tmp_path / TRUTH).read_bytes() == (WORLD.parent / TRUTH).read_bytes()


def test_the_reader_finds_what_documents_of_any_seed_state() -> None:
    for seed in (0, 1, 2):
        cfg = _settings(f"seed={seed}", "num_documents=300")
        truth = draw_truth(cfg)
        reader = StatementReader(truth)
        for document in draw_documents(cfg, truth):
            reading = reader.read(document.text)
            kind = truth.kinds[truth.by_name[document.entity].kind]
            stated = [(Fact(document.entity, name), kind.attributes[name].wordings[place])
                      for name, place in document.states]  # fmt: skip
            assert [(one.fact, one.wording) for one in reading.statements] == stated, document.text
            assert {reader.judge(one) for one in reading.statements} == {"true"}
            assert [document.text[slice(*at)] for at in reading.other_names[1::2]] == [document.names][
                : bool(document.names)
            ]
            assert (reading.num_unknown, reading.entity) == (0, document.entity)


def test_a_world_has_the_asked_shape() -> None:
    cfg = _settings("seed=5")
    truth, documents = draw_truth(cfg), list(draw_documents(cfg, draw_truth(cfg)))
    kinds = [entity.kind for entity in truth.entities]
    assert {kind: kinds.count(kind) for kind in truth.kinds} == dict.fromkeys(cfg.kinds, 40)
    assert {len({attribute for attribute, _ in one.states}) for one in documents} == {5}
    assert sum(one.names is not None for one in documents) / 7500 == pytest.approx(0.2, abs=0.02)
    for kind in truth.kinds.values():
        for attribute in kind.attributes.values():
            assert (len(attribute.wordings), attribute.held_out) == (7, 1)
            assert attribute.is_held_out(attribute.wordings[-1]) and attribute.wordings[-1] in attribute.asking()
    held_out = {
        wording for kind in truth.kinds.values() for one in kind.attributes.values() for wording in one.wordings[-1:]
    }
    reader = StatementReader(truth)
    assert not held_out & {s.wording for one in documents[:500] for s in reader.read(one.text).statements}


def test_a_longer_corpus_begins_with_the_shorter_one() -> None:
    short, long = _settings("num_documents=5"), _settings("num_documents=9")
    assert [*draw_documents(long, draw_truth(long))][:5] == [*draw_documents(short, draw_truth(short))]


def test_another_seed_is_another_world() -> None:
    one, other = (draw_truth(_settings(f"seed={seed}", "num_entities=50")) for seed in (0, 1))
    assert len(one.by_name.keys() & other.by_name.keys()) < 10


def test_fewer_wordings_leave_the_held_out_one() -> None:
    truth = draw_truth(_settings("max_wordings=2"))
    assert {len(one.wordings) for kind in truth.kinds.values() for one in kind.attributes.values()} == {3}


@pytest.mark.parametrize(
    ("text", "verdicts", "values"),
    [
        ("Ann Lee was born in Oldham.", ["true"], ["Oldham"]),
        ("Ann Lee was born in York.", ["false"], ["York"]),
        ("Bob Ray was born in Oldham.", ["nobody"], ["Oldham"]),
        ("The ship Ann Lee sails from Oldham.", ["false"], ["Oldham"]),  # a person has no port
        ("Oldham is where Ann Lee was born. Ann Lee is a baker.", ["true", "true"], ["Oldham", "baker"]),
        ("Ann Lee was born in Oldham", [], []),  # cut off
        ("Ann Lee likes rain.", [], []),
        ("", [], []),
    ],
)  # fmt: skip
def test_statements_are_judged(text: str, verdicts: list[str], values: list[str]) -> None:
    reader = StatementReader(small_world())
    found = reader.read(text).statements
    assert [reader.judge(one) for one in found] == verdicts
    assert [one.value for one in found] == values
    assert all(
        text[slice(*one.value_at)] == one.value and text[slice(*one.name_at)] == one.fact.entity for one in found
    )


def test_a_text_is_about_whom_most_statements_name() -> None:
    reader = StatementReader(small_world())
    reading = reader.read("The ship Gull sails from Hull. Ann Lee is a baker. Ann Lee was born in Oldham. So it is.")
    assert (reading.entity, reading.num_unknown, len(reading.sentences)) == ("Ann Lee", 1, 4)
    assert reader.read("So it is.").entity is None


def _changed(where: str, value: Any) -> dict[str, Any]:
    tree = read_yaml(WORLD)
    *path, last = where.split(".")
    branch = tree
    for part in path:
        branch = branch[part]
    branch[last] = value
    return tree


@pytest.mark.parametrize(
    ("where", "value", "says"),
    [
        ("kinds.town.attributes.river.wordings", ["{name} lies on a river."] * 3, "must hold {name} and {value} once"),
        ("kinds.town.attributes.river.wordings", [], "should have at least 1 item"),
        ("kinds.town.attributes.river.wordings", ["Dr. {name} is at {value}."] * 3, "must be one sentence"),
        ("kinds.town.attributes.river.wordings", ["{value} is at {name}."] * 3, "0 of its wordings end in the value"),
        ("kinds.town.attributes.river.value", "{rivers}", "there is no pool 'rivers'"),
        ("kinds.town.attributes.river.value", "the {given}", None),
        ("kinds.town.attributes.river.value", "the sea", "1 values are possible, which can be guessed"),
        ("kinds.town.attributes.river.question", "Which?", "must hold {name} once"),
        ("kinds.town.mentions", ["{name} is near."], "must hold {name} and {other} once"),
        ("statements_per_document", 11, "is more than kinds.person has attributes (10)"),
        ("num_entities", 4, "is less than one for each of 5 kinds"),
        ("pools.year", {"range": [1990, 1900]}, "is empty"),
        ("pools.year", {"words": ["a"], "range": [1, 2]}, "give exactly one of them"),
        ("kinds.town.name", "Ham", "there are no 40 different names"),
    ],
)  # fmt: skip
def test_a_bad_world_is_refused_in_one_line(where: str, value: Any, says: str | None) -> None:
    def draw() -> Truth:
        return draw_truth(settings_of(BiosConfig, _changed(where, value), [], where="w.yaml"))

    if says is None:
        draw()
        return
    with pytest.raises(SbpError) as error:
        draw()
    assert says in str(error.value) and "\n" not in str(error.value)


def test_an_entity_in_two_kinds_is_refused() -> None:
    tree = read_yaml(WORLD)
    for kind in ("town", "ship"):
        tree["kinds"][kind]["entities"] = ["Avalon"]
    with pytest.raises(SbpError, match="the entity 'Avalon' is in two kinds, town and ship: give one of them another"):
        settings_of(BiosConfig, tree, [], where="w.yaml")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read as the truth of a corpus"),
        ("{", "cannot be read as the truth of a corpus"),
        ("[]", "holds no kinds and entities: give the truth.json that jobs/bios.py wrote"),
        ({"entities": []}, "entities=[]: tuple should have at least 1 item"),
        ({"twice": True}, "the entity 'Ann Lee' is in two kinds, person and ship"),
        ({"values": {"trade": "baker"}}, "entity 'Ann Lee': a person with or without 'birthplace'"),
        ({"name": "Ann St. Lee"}, "'Ann St. Lee' would end a sentence in its middle: spell it without"),
        ({"name": "Ann Inc."}, "'Ann Inc.' would end a sentence in its middle"),
    ],
)
def test_a_bad_truth_is_refused_in_one_line(tmp_path: Path, content: Any, says: str) -> None:
    tree = small_world().model_dump(mode="json")
    if isinstance(content, dict) and "twice" in content:
        tree["entities"][1]["name"] = "Ann Lee"
    elif isinstance(content, dict) and {"values", "name"} & content.keys():
        tree["entities"][0] |= content
    elif isinstance(content, dict):
        tree |= content
    if content is not None:
        (tmp_path / "truth.json").write_text(content if isinstance(content, str) else json.dumps(tree))
    with pytest.raises(SbpError) as error:
        read_truth(str(tmp_path / "truth.json"))
    assert says in str(error.value) and "\n" not in str(error.value)


def test_the_truth_comes_back_from_its_file(tmp_path: Path) -> None:
    truth = small_world()
    (tmp_path / "truth.json").write_text(truth.model_dump_json())
    assert read_truth(str(tmp_path / "truth.json")) == truth
    assert truth.value(Fact("Ann Lee", "trade")) == "baker" and truth.value(Fact("Gull", "trade")) is None


def test_the_job_says_what_is_wrong_in_one_line() -> None:
    command = [sys.executable, "jobs/bios.py", "--config", "data/bios/world.yaml", "num_entitys=3"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=60)
    says = "error: data/bios/world.yaml: num_entitys=3: no such setting; did you mean num_entities?\n"
    assert (done.returncode, done.stderr) == (1, says)
