"""One process's work on live jobs: how a batch becomes a commit, and the threads that do it.

======================  ==========================================================================================
module                  what it has
======================  ==========================================================================================
``node_workers``        a node's work: on which jobs
``local_workers``       this process's workers, by job
``endings``             how a program ends a job
``job_worker``          the thread of one job: claims, beats, observes, and works on its parts in turn
``standby``             whether a worker joins its job, or others are enough
``part_worker``         one part: its bundles, each read, computed and committed
``bundle_fold``         a bundle's state in memory, and what a commit of a batch is
``sifting``               rows that a key or an aggregate fails for, found one by one
``batch_reader``        the next pieces of a bundle's input, prepared
``quiet``               what moves the watermark when no row does
``compaction``          runs that become one, or go
======================  ==========================================================================================

May import all of ``compute.live`` but ``tables`` and ``compiling``.
"""
