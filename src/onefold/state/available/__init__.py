"""Handles of collections that every region can write at any time, merged later.

They stand on the logs of one region (``onefold.regions`` opens them), whose fold is ``onefold.available``. What programs do is
one ``Do`` in the log of a shard; reads are views of the region's replica, which also has what came from other regions so far.

============ =====================================================================
``client``   the core under all of them: operations, views, the session over regions
``levels``   what a level demands of other regions, and waiting for it
``refusals`` errors for what the fold refuses
``versions`` versions of items, which say in which region something was written
``places``   what a name is: one kind of collection
``maps``     maps: the last writer wins, by item or by field, or all are kept
============ =====================================================================

May import ``state.core`` and ``state.encoding``, ``regions``, ``available``; nothing of the kinds of consistent collections but
what their handles share.
"""
