"""Runs: the state and the results of live jobs, as immutable files that commits add.

A commit of a live job adds what its batch changed, never the whole state. Each such delta is a *run*: rows sorted by lane
and key, one row per group, with an operation each: **add** (a mergeable partial), **put** (replaces what older runs say of the
group) or **delete**. The value of a group is its newest put (or nothing, without one or after a delete) merged with the adds
above it. Runs are ordered by the log's offset of the commits that added them.

The same files carry three things: a worker reads its bundle's state from them after a takeover, a reader of the table merges
them, and compaction replaces several of them by one. Nothing here reads a log, and only ``run_store`` a blob store:

- ``rows``: the columns of a run's frame and what a layout is;
- ``run_file``: a frame as bytes, with a footer that says where each lane is;
- ``merging``: several frames of runs as one;
- ``resumming``: the same by grouping all rows again, where states are sums and extremes;
- ``tiers``: which runs are merged next, and what then becomes of their lanes;
- ``run_store``: runs as rows and blobs, and a cache of those that were read;
- ``open_state``: what a worker holds in memory, as a list of immutable frames.

May import ``bundles`` and ``run_bytes``, ``compute.aggregates``, ``blobs``, ``frames`` and ``tasks``, and the folds of ``state``.
"""
