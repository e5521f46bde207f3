"""Regions of a space: what was decided on them, their logs in a folder, and the exchange between them.

The pure fold of a region's log is ``onefold.available``. Here is what makes logs of it that live: how one begins, that each hears
of every decision, and that what one region did comes into the logs of all others.

May import ``available``, ``space`` and what is below.
"""
