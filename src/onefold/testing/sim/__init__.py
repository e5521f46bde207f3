"""Simulation: programs on a space, from a seed, with everything that can go wrong; see ``Simulation``.

May import everything but ``cli``.
"""

from onefold.testing.sim.faults import Faults
from onefold.testing.sim.world import Simulation

__all__ = ["Faults", "Simulation"]
