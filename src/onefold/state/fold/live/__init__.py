"""Live jobs in the state fold: the rows of a job, the operations on them, and ``LaneCommit``, the write that carries a commit.

A **lane** is a fold of the input that keeps the rows of its keys; a **bundle** is a set of lanes of one part with one owner and
one position. A commit of a bundle is one write of the state fold's ``Commit``: input position, state delta, output, watermark
and counters become visible together or not at all, with every other write of the same ``Commit``. It names its predecessor
(``seq``), so of two processes that believe they own a bundle one at most goes through.

======================  ==========================================================================================
module                  what it has
======================  ==========================================================================================
``ops``                 the write and the operations, as they stand in records
``rows``                tables, rows, and reading them
``lanes``               sets of lanes
``jobs``                a job begins, stops, drains, is replayed, swapped and dropped
``bundles``             who owns which lanes: claim, beat, give, fuse, expire, leave
``sharing``             how many lanes a worker should own
``commit``              when a ``LaneCommit`` is refused, and what it does
``runs``                the runs of a part: added, compacted, dropped; the blobs they name, and which are garbage
``hops``                the streams between the parts of a job
``holds``               what is kept of input past its retention, since a job has not read it
``outbox``              what a commit sends to other shards, and where a target shard stands
``fold``                all of this as one kind of collection (``KIND``)
======================  ==========================================================================================

Operations and the write exist from fold version ``ops.LIVE_VERSION`` on; before it they are malformed, as they are to programs
of earlier releases. Pure, as all of ``state.fold``. Nothing here keeps history: a reader needs the newest rows only.

What holds:

- An input row is in exactly one accepted commit of the lane that keeps it.
- A bundle's positions and watermark never go back.
- Runs, positions and watermark of a commit become visible together. Of a refused commit nothing does.

May import ``streams`` of the state fold, and what kinds of collections stand on.
"""
