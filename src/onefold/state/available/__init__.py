"""Handles of collections that every region can write at any time, merged later.

They stand on the logs of one region (``onefold.regions`` opens them), whose fold is ``onefold.available``. What programs do is
one ``Do`` in the log of a shard; reads are views of the region's replica, which also has what came from other regions so far.

================ ===================================================================
``client``       the core under all of them: operations, views, the session over regions
``levels``       what a level demands of other regions, and waiting for it
``refusals``     errors for what the fold refuses
``places``       a name is one thing
``collection``   what all handles share
``settling``     lifetimes end although nobody writes
``maps``         maps
``counters``     counters, with or without a floor
``bounded``      taking from those with a floor, and moving rights
``sets``         sets
``conflicts``    the conflict feed
``contents``     all collections of a region, for lists
``status``       which regions there are
``lag``          what is not exchanged with another region
``unseen``       what nobody took of an evicted region, after it has come again
``outcomes``     what became of a write with a ``request_id``
``transactions`` what ``state.transaction`` does with them
================ ===================================================================

May import all parts of shared state but ``transaction`` and what is above it, and ``available``.
"""
