"""Regions of a space: what was decided on them, their logs in a folder, and the exchange between them.

The pure fold of a region's log is ``onefold.available``. Here is what makes logs of it that live: how one begins, that each hears
of every decision, and that what one region did comes into the logs of all others.

==================== ===============================================================================
``beginning``        the first operations of a region's log
``decisions``        decisions on regions come into the log of each region
``changes``          regions that go and come
``pulling``          what one region asks of another one, and what it does with the answer: pure
``runner``           the exchange of one shard with one other region, step by step; ``Transport``
``peers``            what a program can learn of the other regions
``making``           making a region of a folder
``folder``           opening a region of a folder
``neighbours``       the regions of a folder as one process has them open
``folder_exchange``  the thread that has the regions of a folder pull from each other
``in_memory``        the region of a space in memory
``cluster``          the other regions of a cluster, as their nodes answer; ``ClusterPeers``
``questions``        what nodes of regions ask each other, as bytes: pure
``open_cluster``     opening a region of a cluster, for a program
``links``            links that tests have cut, and clocks that they have shifted
==================== ===============================================================================

In a folder ``DIR/regions/NAME`` is a space of its own, with as many shards as the space in ``DIR``. May import ``available``,
``space`` and what is below.
"""
