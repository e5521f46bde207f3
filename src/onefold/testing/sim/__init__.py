"""Simulation: programs on a space, from a seed, with everything that can go wrong; see ``Simulation``."""

from onefold.testing.sim.faults import Faults
from onefold.testing.sim.world import Simulation

__all__ = ["Faults", "Simulation"]
