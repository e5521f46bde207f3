"""Counts, sums and means, whose states only add up: by arrays instead of merging frame by frame.

``direct_table``: those of a split, by a whole-number key. ``dense``: all partials of a finished table at once.

May import the rest of ``aggregates`` but ``frames``, and what is below it.
"""
