"""The kinds of available collections: what a row is, and how two versions of it are joined.

========== =====================================================================
``places``  which kinds there are, and the table of a collection
``row``     what all kinds of rows can do
``cells``   registers (the last writer wins) and fields
``dots``    keep-both maps and sets
``counts``  counters
``shares``  bounded counters
========== =====================================================================

Pure. May import ``ops``, ``stamps`` and the ground.
"""
