"""Maps that every region can write at any time.

============ =====================================================================
``merges``   what becomes of concurrent writes of one key: the three kinds of maps
``reading``  items, scans and counts, from the rows of the region
``patching`` what ``patch`` may be given
``caching``  session reads from memory
``reader``   the read-only half of the handle
``map``      ``AvailableMap``: the handle
``watching`` what a watch gives of these maps
============ =====================================================================

May import what is next to it, and consistent maps (``onefold.state.maps``), whose parts it uses.
"""
