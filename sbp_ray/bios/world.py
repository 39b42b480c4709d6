"""Draw a world from a seed: its entities, what is true of them, and documents that say so.

`draw_truth` makes the table, `draw_documents` the texts, `write_world` the files. Each draw has a stream of random
numbers of its own, so that a longer corpus begins with the shorter one.
"""

from __future__ import annotations

import gzip
import json
import logging
import string
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from sbp_ray.bios.truth import AttributeTruth, EntityTruth, KindTruth, Truth
from sbp_ray.bios.world_settings import AttributeConfig, BiosConfig, KindConfig, PoolConfig, asks, entities_by_kind
from sbp_ray.errors import SbpError

logger = logging.getLogger(__name__)

DOCUMENTS, QUESTIONS, TRUTH = "documents.jsonl.gz", "questions.jsonl.gz", "truth.json"
_TRIES = 1000  # draws of a name, before a world is said to have no more of them

Draw = Callable[[str], str]
"""Fills a template's pools with random words."""


class Document(NamedTuple):
    """A text, and what it states."""

    text: str
    entity: str
    states: list[tuple[str, int]]
    """Attributes in the text's order, each with the place of its wording in the truth."""
    names: str | None
    """Another entity that it names."""


def draw_truth(cfg: BiosConfig) -> Truth:
    """Draw entities and their values.

    Raises:
        SbpError: a kind has not as many names as it should have entities.
    """
    pools = {name: _words(pool, Random(f"{cfg.seed} pool {name}")) for name, pool in cfg.pools.items()}  # noqa: S311
    numbers = entities_by_kind(cfg.kinds, cfg.num_entities)
    taken = {name for kind in cfg.kinds.values() for name in kind.entities}
    entities = []
    for kind, own in cfg.kinds.items():
        draw = _drawer(pools, Random(f"{cfg.seed} entities {kind}"))  # noqa: S311
        for name in _names(kind, own, numbers[kind], draw, taken):
            values = {attribute: draw(one.value) for attribute, one in own.attributes.items()}
            entities.append(EntityTruth(name=name, kind=kind, values=values))
    kinds = {
        kind: KindTruth(
            mentions=own.mentions,
            attributes={name: _attribute(cfg, f"{kind} {name}", one) for name, one in own.attributes.items()},
        )
        for kind, own in cfg.kinds.items()
    }
    return Truth(kinds=kinds, entities=tuple(entities))


def _words(pool: PoolConfig, random: Random) -> list[str]:
    if pool.words is not None:
        return list(dict.fromkeys(pool.words))
    if pool.range is not None:
        return [str(number) for number in range(pool.range[0], pool.range[1] + 1, pool.step)]
    assert pool.syllables is not None
    made: dict[str, None] = {}
    while len(made) < pool.num_words():
        made["".join(random.choice(part) for part in pool.syllables)] = None
    return list(made)


def _drawer(pools: dict[str, list[str]], random: Random) -> Draw:
    def draw(template: str) -> str:
        """A pool that stands there twice gives two different words."""
        used: set[str] = set()
        text = ""
        for literal, field, _, _ in string.Formatter().parse(template):
            text += literal
            if field is not None:
                word = random.choice([word for word in pools[field] if word not in used] or pools[field])
                used.add(word)
                text += word
        return text

    return draw


def _names(kind: str, own: KindConfig, number: int, draw: Draw, taken: set[str]) -> list[str]:
    names = list(own.entities[:number])
    for _ in range(number - len(names)):
        for _ in range(_TRIES):
            if (name := draw(own.name)) not in taken:
                break
        else:
            raise SbpError(
                f"kinds.{kind}: there are no {number} different names: enlarge the pools of kinds.{kind}.name"
            )
        taken.add(name)
        names.append(name)
    return names


def _attribute(cfg: BiosConfig, key: str, attribute: AttributeConfig) -> AttributeTruth:
    """Choose the wordings of a world: those of its documents, then those that are held out."""
    random = Random(f"{cfg.seed} wordings {key}")  # noqa: S311
    wordings = list(dict.fromkeys(attribute.wordings))
    held_out = random.sample([wording for wording in wordings if asks(wording)], cfg.held_out_wordings)
    used = [wording for wording in wordings if wording not in held_out]
    random.shuffle(used)
    return AttributeTruth(
        question=attribute.question,
        wordings=(*used[: cfg.max_wordings], *held_out),
        held_out=len(held_out),
    )


def draw_documents(cfg: BiosConfig, truth: Truth) -> Iterator[Document]:
    """Write documents, one after the other."""
    for number in range(cfg.num_documents):
        random = Random(f"{cfg.seed} document {number}")  # noqa: S311
        entity = random.choice(truth.entities)
        kind = truth.kinds[entity.kind]
        states, sentences = [], []
        for attribute in random.sample(sorted(entity.values), cfg.statements_per_document):
            of = kind.attributes[attribute]
            place = random.randrange(len(of.wordings) - of.held_out)
            states.append((attribute, place))
            sentences.append(of.wordings[place].format(name=entity.name, value=entity.values[attribute]))
        other = None
        if random.random() < cfg.mention_share and len(truth.entities) > 1:
            other = random.choice([one.name for one in truth.entities if one is not entity])
            mention = random.choice(kind.mentions).format(name=entity.name, other=other)
            sentences.insert(random.randint(1, len(sentences)), mention)
        yield Document(" ".join(sentences), entity.name, states, other)


def write_world(cfg: BiosConfig) -> dict[str, int]:
    """Draw the world of these settings and write its files; the same settings give the same bytes.

    Returns:
        How many entities, facts and documents there are.
    """
    out = Path(cfg.out)
    truth = draw_truth(cfg)
    out.mkdir(parents=True, exist_ok=True)
    _write_lines(out / DOCUMENTS, (_row(*numbered) for numbered in enumerate(draw_documents(cfg, truth))))
    _write_lines(out / QUESTIONS, _questions(truth))
    text = json.dumps(truth.model_dump(mode="json"), indent=1, ensure_ascii=False)
    (out / TRUTH).write_text(f"{text}\n", encoding="utf-8")  # last: whoever finds it finds the others
    counts = {"entities": len(truth.entities), "facts": sum(1 for _ in truth.facts()), "documents": cfg.num_documents}
    logger.info(f"bios | {', '.join(f'{number:,} {noun}' for noun, number in counts.items())} | {out}")
    return counts


def _row(number: int, document: Document) -> dict[str, Any]:
    row: dict[str, Any] = {"id": f"{number:06d}", "text": document.text, "group": document.entity}
    return row | {"states": dict(document.states), "names": document.names}


def _questions(truth: Truth) -> Iterator[dict[str, Any]]:
    for entity in truth.entities:
        for attribute, value in entity.values.items():
            question = truth.kinds[entity.kind].attributes[attribute].question.format(name=entity.name)
            yield {"question": question, "answers": [value], "title": entity.name, "attribute": attribute}


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    data = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data, mtime=0))
