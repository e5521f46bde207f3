"""Transactions over collections for every region: the parts under ``state.transaction``, which users hold.

What one reads and writes is of one shard, and becomes one ``Do`` in that shard's log of the region: so it is one effect, which
other regions take whole. The fold does it iff nothing that was read has changed, so within a region it is serializable.

============ ==================================================================
``entries``  what was written to one key, laid over its row. Pure
``reads``    the snapshot, and the record of what was read
``part``     one try: its shard, its entries, its commit
``maps``     available maps in a transaction
``counters`` counters in a transaction
``sets``     sets in a transaction
``handles``  all of them, made from names or plain handles
============ ==================================================================

May import what ``state.available`` may, and its handles.
"""
