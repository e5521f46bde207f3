"""How often what happens in a run of the model. Most seeds have a profile that makes frequent what one kind of mistake needs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple


class Stress(NamedTuple):
    """Chances, each of one occasion."""

    steps: int = 150

    claims: float = 0.06
    looks: float = 0.06
    gives: float = 0.04
    splits: float = 0.03
    halves: float = 0.0
    fuses: float = 0.09
    """Of a worker's step. In what is left it works on a bundle."""
    waits: float = 0.3
    """Something happens between the computation of a commit and the commit."""
    compacts: float = 0.3
    sweeps: float = 0.5
    killed: float = 0.012
    """A process dies with an append, done or not."""
    unknown: float = 0.078
    """The answer to an append is lost."""
    doubts: float = 0.078
    """The same, to a commit."""
    happens: float = 0.5
    """The append without an answer has been done."""
    copies: float = 0.7
    """A copy of a commit without an answer is still on its way."""
    surfaces: float = 0.3
    """Something that is on its way arrives."""
    gives_up: float = 0.3
    """A commit in doubt is not tried again: the bundle is read again."""
    returns: float = 0.5
    """Then it is read again at once."""
    freezes: float = 0.05
    """A partition falls silent, or is no longer."""
    comes: float = 0.06
    """Another worker comes, while there are fewer than ``workers_max``."""
    workers_max: int = 3
    choices: Mapping[str, tuple[Any, ...]] = MappingProxyType({})
    """What a seed decides otherwise than usual (``world.settings_of``)."""


EVERYTHING: Final = Stress(splits=0.06, choices={"history": (True,), "rate": (0.9, 0.3, 0.1)})
"""Of everything a little, and a history."""
FUSING: Final = Stress(
    steps=220,
    halves=0.15,
    fuses=0.1,
    killed=0.005,
    unknown=0.04,
    doubts=0.04,
    freezes=0.1,
    choices={
        "partitions": (2, 3),
        "lanes": (5, 6, 8),
        "by_partition": (False,),
        "window_s": (1, 2),
        "keys": (8, 20),
        "rate": (0.3,),
        "rows_max": (20,),
        "idle_s": (1.0, 2.0),
    },
)
"""Bundles are split and meet again while partitions fall silent, so that some have found them idle and others have not."""
EQUAL: Final = Stress(
    steps=220,
    waits=0.7,
    compacts=0.9,
    killed=0.005,
    unknown=0.04,
    doubts=0.04,
    claims=0.03,
    looks=0.03,
    gives=0.02,
    fuses=0.04,
    choices={
        "partitions": (2, 3),
        "by_partition": (True, True, False),
        "window_s": (60,),
        "keys": (1,),
        "rate": (0.5,),
        "rows_max": (1,),
    },
)
"""Few keys and long windows: runs with equal rows come again and again, and are compacted and swept meanwhile."""
UNKNOWN: Final = Stress(
    steps=220,
    killed=0.005,
    doubts=0.4,
    happens=0.2,
    copies=0.9,
    surfaces=0.45,
    gives_up=0.9,
    returns=1.0,
    workers_max=2,
)
"""Commits are given up and made again with more rows, while the former ones are still on their way."""
PROFILES: Final = (EVERYTHING, FUSING, EQUAL, UNKNOWN)
