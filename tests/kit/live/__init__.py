"""A model of live jobs under everything that can go wrong, from a seed: one thread, a store in memory.

``world`` has the log, the input, time and faults; ``kept`` what retention leaves of the input; ``worker`` a small worker and
``computing`` what it computes; ``model`` a run of several; ``stress`` how often what happens, by seed; ``check`` what must hold;
``bugs`` mistakes that the checks must notice. What is tested is the product's own: the state fold decides (``state.fold``),
``compute.live.bundles`` claims and commits, ``compute.live.observing`` expires, ``compute.live.holds`` keeps input; watermarks,
lateness, idleness and windows are those of ``compute.live``.
"""
