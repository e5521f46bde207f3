"""A full sync: the rows of another region, joined with those that are here, in many records.

For a region that is new, or was away for so long that effects it lacks are not kept any more. The rows are those of one offset of
the other region's log, where it knew the vector V.

1. *Staged*: the other region's rows are kept as they came.
2. *Joined*, once all have come, some in each record: what each row of either region becomes is written to the next *generation*,
   which has tables of its own. A row, or a part of one, that only one side has is taken or kept if the other side cannot know its
   effect yet; else the other side has removed it. A union would bring back what was deleted.
3. *Switched*: one record makes the next generation the one that readers see, and V known.
4. *Dropped*, bit by bit: the generation before, and the staged rows.

Until the switch, readers see the old state, whole: rows, names, ends, gone rows, content hash, known requests and conflicts. What
programs write meanwhile, and what is imported, changes that state. Its rows are joined again in the same record, which is
possible at any time: what a row becomes depends on this region's row, the staged one, and what both regions know. So nothing is
lost, and the next generation is at each moment what this region would be with V known, as far as it is joined.

If the sync is given up, or another one begins, nothing has changed but tables that nobody sees, and those are dropped.

What had ended in the other region is missing in its rows, so it ends here too: early, if that region's clock is ahead, by no more
than effects may be.

=========== ==========================================================
``staging`` the operations of a full sync
``joining`` its rows joined, and the switch
``leaving`` what the switch leaves to be done: dropping, conflicts
=========== ==========================================================

Pure. May import the rest of ``available``, but for ``home``, ``deciding``, ``following`` and ``fold``.
"""
