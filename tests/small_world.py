"""A world of three entities, small enough to count by hand."""

from __future__ import annotations

from sbp_ray.bios.truth import AttributeTruth, EntityTruth, KindTruth, Truth


def small_world() -> Truth:
    """Two persons with a birthplace and a trade, and a ship with a port; the last wording of each is held out."""

    def attribute(*wordings: str) -> AttributeTruth:
        return AttributeTruth(question="What of {name}?", wordings=wordings, held_out=1)

    born = ("{name} was born in {value}.", "{value} is where {name} was born.", "{name} is a native of {value}.")
    trade = ("{name} is a {value}.", "{name} worked as a {value}.")
    port = ("The ship {name} sails from {value}.", "The port of {name} is {value}.")
    person = KindTruth(
        mentions=("{name} knew {other}.",),
        attributes={"birthplace": attribute(*born), "trade": attribute(*trade)},
    )
    ship = KindTruth(mentions=("The {name} passed {other}.",), attributes={"port": attribute(*port)})
    return Truth(
        kinds={"person": person, "ship": ship},
        entities=(
            EntityTruth(name="Ann Lee", kind="person", values={"birthplace": "Oldham", "trade": "baker"}),
            EntityTruth(name="Gull", kind="ship", values={"port": "Hull"}),
            EntityTruth(name="Tom Fox", kind="person", values={"birthplace": "York", "trade": "miner"}),
        ),
    )
