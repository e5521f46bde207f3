"""Live jobs: plans over streams that never end, exactly once, in event time.

A **lane** is a fold of the input that keeps the rows of its keys. A **bundle** is a set of lanes of one part with one owner and
one position. A **commit** of a bundle is one write in the log (``state.fold.live``): it carries input positions, state delta,
output, watermark and counters, and names the commit before it. Nothing else decides what happened.

A plan is frozen into **parts** (``plan``, ``compiling``). A worker works on all parts of a job in turn (``worker``): it claims
bundles, reads pieces of the input partitions (``inputs``), computes a step of the bundle's fold and commits it in one operation
(``bundles``). What is committed is all there is: the state of a bundle is what its **runs** say, its position and watermark are
in its row.

===================  =============================================================================================
module or package    what it has
===================  =============================================================================================
``worker``           one process's work on jobs: threads, parts, a bundle as a fold of its input, compaction
``tables``           the table of a job, read from its runs
``job``              a job's beginning, its stored plan, how it stands and what holds it
``output``           sinks, other shards, hops
``inputs``           pieces of partitions, records as rows, functions before the key
``runs``             state as frames: merging, tiers; runs as blobs and in rows
``operators``        windows, sessions, running aggregates
``compiling``        from a dataset to parts, and what is refused
``checking``         what is wrong with a plan's columns before a record is read
``plan``             the parts of a job as frozen data
``names``            one job for a table's name, batch or live
``seam``             a history before the stream: its plan and its batch job
``history``          the result of that batch job
``holds``            what is not read yet is kept past its retention
``garbage``          blobs that nothing names any more
``observing``        which workers are gone
``bundles``          bundles as their worker holds them: claim, commit, give, fuse
``client``           a job's rows and operations as programs use them
``alignment``        which partition is read next. Pure, like those that follow
``idleness``         silent partitions
``event_time``       watermarks
``run_bytes``        the head of a run's bytes
===================  =============================================================================================

May import what jobs over files stand on, up to ``execution``, and ``state``; of the list, what stands below. Several parts
share a layer: the order is a contract of import-linter.
"""
