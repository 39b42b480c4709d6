"""Invented stories of a news wire: earnings tables, market reports and deals, in which the form is the agency's.

    python benchmarks/wire_stories.py 1500 > runs/wire.jsonl

A story is a list of paragraphs. Two stories of one form share its wording and nothing else; `updated` in
`labelled_pairs.py` makes of one story what an agency sends again an hour later.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable

_STARTS = "bar bex cal dor eas far gan hal inv jar kel lom mer nor oak pel quar red sel tar ulv van wes yar zel"
_ENDS = "den ley der rance mark well try ton ness row so ax wood ham worth ford wyn rant ston ce tray mouth ler by"
_TRADES = "Steel Foods Petroleum Airlines Savings Chemicals Textiles Mining Electric Paper Pharma Rail Tobacco"
_FORMS = ("Corp", "Inc", "Ltd", "Co", "Industries Inc", "Holdings")
_GOODS = "copper wheat coffee cocoa sugar tin rubber cotton soybeans aluminium zinc barley"
_DAYS = "Monday Tuesday Wednesday Thursday Friday"


def _one_of(words: str, rng: random.Random) -> str:
    return rng.choice(words.split())


def _name(rng: random.Random) -> str:
    """One of some ten thousand, as names are: most of them stand in few stories."""
    return (_one_of(_STARTS, rng) + rng.choice(("", _one_of(_STARTS, rng))) + _one_of(_ENDS, rng)).capitalize()


def company(rng: random.Random) -> str:
    """Two names, a trade and a legal form."""
    return f"{_name(rng)} {_name(rng)} {_one_of(_TRADES, rng)} {rng.choice(_FORMS)}"


def _number(rng: random.Random) -> str:
    return f"{rng.randrange(10, 999)},{rng.randrange(1000):03d}"


def _earnings(rng: random.Random) -> list[str]:
    name, quarter = company(rng), rng.choice(("1st", "2nd", "3rd", "4th"))
    cents = [rng.randrange(2, 220) for _ in range(4)]
    mln = [f"{rng.randrange(2, 900)}.{rng.randrange(10)} mln" for _ in range(4)]
    return [
        f"{name.upper()} {quarter} QTR NET",
        f"Shr {cents[0]} cts vs {cents[1]} cts",
        f"Net {_number(rng)},000 vs {_number(rng)},000",
        f"Revs {mln[0]} vs {mln[1]}",
        f"Avg shrs {_number(rng)} vs {_number(rng)}",
        "Year",
        f"Shr {cents[2]} cts vs {cents[3]} cts",
        f"Net {_number(rng)},000 vs {_number(rng)},000",
        f"Revs {mln[2]} vs {mln[3]}",
        f"NOTE: Results include a {rng.choice(('gain', 'charge', 'credit'))} of {_number(rng)} dlrs, or "
        f"{rng.randrange(2, 60)} cts a share, from {rng.choice(('the sale of a unit', 'tax loss carryforwards'))}. "
        f"Full name of company is {name}.",
    ]


def _market(rng: random.Random) -> list[str]:
    good, place, person, broker = _one_of(_GOODS, rng), _name(rng), _name(rng), _name(rng)
    first, second = rng.randrange(200, 2000), rng.randrange(200, 2000)
    return [
        f"{place} {good} prices {rng.choice(('closed', 'ended', 'finished'))} {rng.choice(('higher', 'lower'))} on "
        f"{_one_of(_DAYS, rng)} in {rng.choice(('thin', 'active', 'nervous'))} trading, dealers said.",
        f"Three months {good} settled at {first} dlrs a tonne, {rng.randrange(2, 40)} dlrs "
        f"{rng.choice(('above', 'below'))} the previous close, after touching {second} dlrs in the morning.",
        f"Turnover was {_number(rng)} tonnes against {_number(rng)} tonnes the day before.",
        f"Traders at {broker} said {rng.choice(('Chinese', 'Japanese', 'European', 'speculative'))} "
        f"{rng.choice(('buying', 'selling'))} had dominated the afternoon session.",
        f"Stocks in {place} warehouses {rng.choice(('rose', 'fell'))} by {_number(rng)} tonnes in the week.",
        f'"The market is waiting for {rng.choice(("the crop report", "news of the strike", "a lead from abroad"))}," '
        f"said {person} of {broker}. He expected prices to move between {first - 30} and {first + 40} dlrs.",
    ]


def _deal(rng: random.Random) -> list[str]:
    buyer, seller, place, person, other = company(rng), company(rng), _name(rng), _name(rng), _name(rng)
    stake, price = rng.randrange(5, 100), rng.randrange(20, 900)
    return [
        f"{buyer} said it {rng.choice(('agreed', 'offered', 'signed a letter of intent'))} to acquire {stake} pct of "
        f"{seller} for {price} mln dlrs in {rng.choice(('cash', 'stock', 'cash and notes'))}.",
        f"The company said the transaction is subject to approval by the boards of both companies and by shareholders "
        f"of {seller}, who will meet in {place} on {_one_of(_DAYS, rng)}.",
        f"{seller}, based in {place}, had sales of {rng.randrange(20, 900)} mln dlrs in {rng.randrange(1980, 1990)} "
        f"and employs {_number(rng)} people in {rng.randrange(2, 30)} plants.",
        f'"This gives us a position in {_one_of(_TRADES, rng).lower()} that we could not have built," chairman '
        f"{person} said. He added that no plant would be closed before {rng.randrange(1988, 1995)}.",
        f"Analyst {other} of {_name(rng)} called the price {rng.choice(('full', 'fair', 'low'))} at "
        f"{rng.randrange(5, 30)} times earnings.",
        f"Shares of {seller} rose {rng.randrange(1, 20)} to {rng.randrange(20, 90)} dlrs.",
    ]


FORMS: dict[str, Callable[[random.Random], list[str]]] = {"earnings": _earnings, "market": _market, "deal": _deal}


def story(rng: random.Random, form: str) -> list[str]:
    """A story in the named form; two calls give two stories about other companies, places and prices."""
    return FORMS[form](rng)


def main() -> None:
    """See the file's docstring."""
    parser = argparse.ArgumentParser(description="Prints a corpus of stories of all forms as JSON lines.")
    parser.add_argument("stories", type=int)
    rng = random.Random(0)  # noqa: S311
    for number in range(parser.parse_args().stories):
        form = [*FORMS][number % len(FORMS)]
        print(json.dumps({"text": "\n".join(story(rng, form)), "form": form}))


if __name__ == "__main__":
    main()
