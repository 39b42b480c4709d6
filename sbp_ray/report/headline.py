"""The answer of a study in words and in a few numbers: what the page and the terminal say first.

`answer` compares the best SBP arm with the best control and with repetition; `remarks` says what limits the answer;
`tiles` are the numbers beside it on the page. `render_summary` is all of it for a terminal, with the tables as plain
text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from sbp_ray.report import paper, wording
from sbp_ray.report.fact_tables import fact_tables
from sbp_ray.report.wording import fixed, gain_words, interval_of, percent, percent_interval, scaled

HEADLINE = "held_out_nats_per_token"
"""The measure that answers."""
TEXT_SETS = {
    "held_out": "Held-out documents",
    "answers_read": "Answers, articles it read",
    "answers_held_out": "Answers, held-out articles",
}
_NO_SHARE = "Not given: the oracle’s own gain is not shown to be above zero, or there is no oracle."
Arm = Mapping[str, Any]


def best_sbp(results: Mapping[str, Any]) -> Arm | None:
    """The arm with SBP text that gained most; None where none can be compared."""
    sbp = [arm for arm in _comparable(results) if HEADLINE in arm["measures"]]
    return max(sbp, key=lambda arm: arm["measures"][HEADLINE]["gain"]) if sbp else None


def _comparable(results: Mapping[str, Any]) -> list[Arm]:
    """Arms with SBP text of the same corpus that trained on as many tokens as repetition."""
    return [arm for arm in results["arms"] if arm["like"] == "sbp" and arm["is_comparable"]]


def _arm(results: Mapping[str, Any], like: str) -> Any:
    """The first arm of this kind, which for repetition is the baseline; None without any."""
    named = [arm for arm in results["arms"] if arm["name"] == like]
    return next(iter([*named, *(arm for arm in results["arms"] if arm["like"] == like)]), None)


def answer(results: Mapping[str, Any]) -> list[str]:
    """What SBP gained, plus or minus what: over the best control first, where there are any; then over repetition, at
    what cost, and beside the oracle; then over each control that reads as much synthetic text."""
    if "held_out" not in results["texts"]:
        return ["No documents were held out, so the arms were not compared on unread text."]
    best, base = best_sbp(results), _arm(results, "repetition")
    if best is None:
        return ["No arm trained on synthetic text as SBP does, on the same corpus and as many tokens as repetition."]
    found = best["measures"][HEADLINE]
    share, control = found["share_of_oracle"], found["control"]
    over = _verdict(best["name"], found, "repetition")
    if best["cost"]:
        over += f", at {best['cost']['flops'] / base['cost']['flops']:.1f} times its cost"
    if share:
        over += f"; that is {percent_interval(share)} (over {len(best['seeds'])} seeds) of what the oracle gained"
    if worth := _worth(results, best):
        over += f", and {worth}"
    if control is None:
        return [f"{over}."]
    best_of = f"{control['name']}, the best of {', '.join(control['of'])}"
    return [f"{_verdict(best['name'], control, best_of)}.", f"{over}.", *_beside_other_text(found)]


def _beside_other_text(found: Mapping[str, Any]) -> list[str]:
    """Whether it pays that the text was written from related documents: beside as much text written otherwise."""
    gains = [f"{gain_words(other)} over {other['name']}" for other in found["at_same_share"]]
    return [f"Beside as much text that was written otherwise, in nats a token: {'; '.join(gains)}."] if gains else []


def _verdict(name: str, found: Mapping[str, Any], other: str) -> str:
    interval = interval_of(found)
    gain = f"{gain_words(found, f' nats a token of held-out text over {other}')}"
    if interval is None:
        return f"{name}: {gain}"
    if interval["low"] <= 0 <= interval["high"]:
        return f"{name} shows no difference: {gain}"
    return f"{name} gained {gain}" if interval["low"] > 0 else f"{name} lost: {gain}"


def _worth(results: Mapping[str, Any], arm: Arm) -> str | None:
    """The gain in effective data, where a law was fitted to repetition."""
    rows = results["effective_data"]["arms"] if results["effective_data"] else ()
    times = next((row["times"]["repetition"] for row in rows if row["name"] == arm["name"]), None)
    return None if times is None else f"in effective data it is worth {times_words(times)}"


def times_words(found: Mapping[str, Any] | None) -> str:
    """A multiple of real text, with its interval and the interval's unit, as far as it has one."""
    if found is None:
        return "–"
    if found["value"] is None:
        return "more real text than any (its loss is below the law's floor)"
    said = f"{found['value']:.2f} times the corpus"
    if "low" in found:
        said += f" [{found['low']:.2f}, {found['high']:.2f}] over {found['units']} {found['unit']}"
    return f"{said}, beyond the sizes measured" if found["is_extrapolated"] else said


# What a reader must know to believe the answer, or not


def remarks(results: Mapping[str, Any]) -> list[str]:
    """What the answer depends on, and what its intervals leave out."""
    sbp, base = _comparable(results), _arm(results, "repetition")
    found = _not_measured(results) + _about_intervals(results)
    if len(sbp) > 1:
        found.append(
            f"The best of {len(sbp)} arms with SBP text is named, chosen by this same measure, which flatters SBP."
        )
    found += _unequal_tuning(results) + _unequal_types(results)
    found += [
        f"{arm['name']} trained on {scaled(arm['tokens'])} tokens and repetition on {scaled(base['tokens'])}: its "
        "gain is not one at equal tokens."
        for arm in results["arms"]
        if arm["tokens"] != base["tokens"]
    ]
    oracle = _arm(results, "oracle")
    if results["effective_data"]:
        refused = [recipe["refused"] for recipe in results["effective_data"]["recipes"] if recipe["refused"]]
        found += [f"Effective data: not given: {why}." for why in refused[:1]]
    if sbp and not any(arm["measures"][HEADLINE]["control"] for arm in sbp if HEADLINE in arm["measures"]):
        found.append(
            "Repetition is the only arm at equal budget: controls would tell whether the relation between documents "
            "has a part in the gain (docs/experiment.md)."
        )
    if oracle and HEADLINE in oracle["measures"]:
        over_seeds = oracle["measures"][HEADLINE]["over_seeds"]
        if over_seeds is None or over_seeds["low"] <= 0:
            found.append(
                "The oracle's gain is not shown to be above zero with these seeds, so no share of it is given."
            )
    names = {arm["name"] for arm in sbp}
    found += [_at_equal_cost(row) for row in results["equal_cost"] if row["name"] in names]
    if not results.get("synthesizer_per_seed", True):
        found.append("All seeds share one synthesis: the intervals leave out how far another would move the result.")
    if dead := results.get("dead"):
        found.append(f"{len(dead)} trainings have no result: {'; '.join(dead)}.")
    return found


def _unequal_types(results: Mapping[str, Any]) -> list[str]:
    """Where `pretrain.dtype=auto` has come to one type in one training and to another in another."""
    types = {arm["name"]: " and ".join(arm.get("dtypes", [])) for arm in results["arms"]}
    if len({each for each in types.values() if each}) < 2 and not any(" and " in each for each in types.values()):
        return []
    said = ", ".join(f"{name} in {each}" for name, each in types.items() if each)
    return [f"Arms were computed in different types ({said}), which may have a part in a gain: name one, no auto."]


def _unequal_tuning(results: Mapping[str, Any]) -> list[str]:
    """Where of the two arms that the answer compares one was tuned and the other was not."""
    best = best_sbp(results)
    if best is None:
        return []
    control = best["measures"][HEADLINE]["control"]
    other = _arm(results, control["name"] if control else "repetition")
    tuned, untuned = (best, other) if best["tuning"] else (other, best)
    if not tuned["tuning"] or untuned["tuning"]:
        return []
    return [
        f"{tuned['name']} was tuned, with {tuned['tuning']['trainings']} trainings, and {untuned['name']} was not: the "
        "gain is not one at equal tuning."
    ]


def _not_measured(results: Mapping[str, Any]) -> list[str]:
    missing = [label for name, label in TEXT_SETS.items() if name not in results["texts"]]
    if not any(row["pairs"] for row in results["synthesizers"]):
        missing.append("What d1 is worth to a synthesizer")
    return [f"{label}: {wording.NOT_MEASURED}." for label in missing]


def _about_intervals(results: Mapping[str, Any]) -> list[str]:
    """Of which units they are, and where there are too few of them."""
    seeds, fewest = len(results["seeds"]), results["min_groups"]
    found = [f"Gains have 95 % intervals over {seeds} seeds."]
    if seeds == 1:
        found = ["One seed: intervals are over groups; no interval says how far another training would move a gain."]
    groups = {TEXT_SETS[name].lower(): facts["groups"] for name, facts in results["texts"].items()}
    few = {label: number for label, number in groups.items() if number < fewest}
    return found + wording.too_few_groups(few, fewest)


def _at_equal_cost(row: Mapping[str, Any]) -> str:
    against, within = row["against"], row["within"]
    best = "No arm that repeats the text costs as little."
    if within is not None:
        best = f"Of what repeats the text for no more, {within['name']} is best: beside it {row['name']} gains "
        best += f"{gain_words(within, ' nats a token')}."
    if against is None:
        times = f"{row['times_repetition']:.1f} times as much as repetition"
        return f"{row['name']} costs {times}, and no arm like repetition costs as much. {best}"
    costs = f"{row['flops']:.1e} FLOPs, {against['name']} {against['flops']:.1e}"
    spent = f"At equal cost, all of it spent ({costs}), {row['name']} gains {gain_words(against, ' nats a token')}."
    return spent if within is not None and against["name"] == within["name"] else f"{spent} {best}"


def tiles(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The answer in numbers: a title, lines of label, number and colour, and a note."""
    best, base, oracle = best_sbp(results), _arm(results, "repetition"), _arm(results, "oracle")
    if best is None:
        return []
    control = best["measures"].get(HEADLINE, {}).get("control")
    rival = _arm(results, control["name"]) if control and control["name"] != base["name"] else None
    shown = [(n, arm, c) for n, arm, c in (("Repetition", base, "rep"), (control and control["name"], rival, ""),
             (best["name"], best, "sbp"), ("Oracle", oracle, "third")) if arm]  # fmt: skip
    found: list[dict[str, Any]] = []
    for name, title in (("held_out", "Held-out loss"), ("answers_read", "Answers on articles it read")):
        if (measure := f"{name}_nats_per_token") in base["measures"]:
            losses = [(label, fixed(arm["measures"][measure]["mean"]), css) for label, arm, css in shown]
            gain = f"Gain over repetition {gain_words(best['measures'][measure])}."
            found.append({"title": f"{title}, nats a token", "lines": losses, "note": gain})
    if oracle:
        share = best["measures"][HEADLINE]["share_of_oracle"]
        theirs = f"The paper’s: {paper.SHARES_OF_ORACLE}, of the gain in QA accuracy of 3 and 6 B parameters."
        lines = [(best["name"], percent(share and share["value"]), "sbp")]
        note = f"{percent_interval(share)}. {theirs}" if share else f"{_NO_SHARE} {theirs}"
        found.append({"title": "Share of the oracle’s gain", "lines": lines, "note": note})
    if base["cost"]:
        costs = [(label, f"{arm['cost']['flops'] / base['cost']['flops']:.1f} ×", css) for label, arm, css in shown]
        note = "FLOPs of all that the arm needs: embedding, tuning and generation too."
        found.append({"title": "Total cost, beside repetition", "lines": costs, "note": note})
    gains = [] if oracle else [row for row in results["synthesizers"] if row["pairs"]]
    return found + [_synthesizer_tile(row) for row in gains[:1]]


def _synthesizer_tile(row: Mapping[str, Any]) -> dict[str, Any]:
    views = {"Given d1": "nll_given_d1", "Given a random document": "nll_given_random", "Given nothing": "nll_alone"}
    return {
        "title": "Synthesizer on held-out pairs, nats a token of d2",
        "lines": [(label, fixed(row.get(key), 2), "") for label, key in views.items()],
        "note": f"{row['pairs']:,} pairs.",
    }


# For the terminal


def render_summary(results: Mapping[str, Any]) -> str:
    """Plain text: the answer, the arms, the synthesizers, the quality of the text, and what to keep in mind."""
    blocks = [[*answer(results), f"Scale: {wording.scale_sentence(results)}."]]
    if elsewhere := results["found_elsewhere"]:
        blocks.append(
            [f"With controls, in another experiment on this corpus ({elsewhere['file']}):", *elsewhere["says"]]
        )
    blocks.append(wording.aligned(_arm_cells(results)))
    if tuned := [f"{arm['name']}: {wording.tuning_words(arm['tuning'])}" for arm in results["arms"] if arm["tuning"]]:
        blocks.append(["what was tuned", *tuned])
    if gains := [row for row in results["synthesizers"] if row["pairs"]]:
        heads = ("nats a token of d2, held-out pairs", "given d1", "random d1", "alone")
        keys = ("nll_given_d1", "nll_given_random", "nll_alone")
        cells = [(f"for {', '.join(row['for'])}", *(fixed(row.get(key)) for key in keys)) for row in gains]
        blocks.append(wording.aligned([heads, *cells]))
    blocks += [[table.title, *wording.aligned(table.rows)] for table in fact_tables(results["facts"])]
    if results["quality"]:
        blocks.append(wording.aligned(_quality_cells(results["quality"]["table"])))
    return "\n".join(["", *("\n".join(block) + "\n" for block in [*blocks, remarks(results)] if block)])


def _arm_cells(results: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A line for each arm; gains are above zero where the arm is better."""
    sets = {name: label for name, label in TEXT_SETS.items() if name in results["texts"]}
    has_cost, has_oracle = bool(results["equal_cost"]), _arm(results, "oracle") is not None
    heads = ["arm", *["perplexity"] * ("held_out" in sets), *(f"{label}: loss; gain" for label in sets.values())]
    rows = [(*heads, *["of the oracle's gain"] * has_oracle, *["FLOPs in all"] * has_cost)]
    for arm in results["arms"]:
        measures = [arm["measures"][f"{name}_nats_per_token"] for name in sets]
        gains = ["" if found["gain"] is None else f"; {gain_words(found)}" for found in measures]
        cells = [fixed(found["mean"]) + gain for found, gain in zip(measures, gains, strict=True)]
        if "held_out" in sets:
            cells.insert(0, fixed(math.exp(measures[0]["mean"]), 1))
        if has_oracle:
            cells.append(percent_interval(measures[0]["share_of_oracle"]) if measures else "–")
        rows.append((arm["name"], *cells, *[f"{arm['cost']['flops']:.1e}" for _ in range(has_cost)]))
    return rows


_QUALITY = {
    "repetition": "repetition inside a document",
    "near_duplicates": "near-duplicates in the sample",
    "tokens": "tokens, mean",
    "novel_4": "novel 4-token runs",
    "corpus_copies": "copies of any training document",
    "irrelevant": "d2 no closer to d1 than random pairs",
    "d1_copies": "d2 copies d1",
}


def _quality_cells(table: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    shown = [row for row in table if row["measures"]]
    rows = [("quality of the text", *(row["name"].replace("_", " ") for row in shown))]
    for measure, label in _QUALITY.items():
        cells = [row["measures"].get(measure, {}).get("value") for row in shown]
        rows.append((label, *(fixed(cell, 0) if measure == "tokens" else percent(cell) for cell in cells)))
    return rows
