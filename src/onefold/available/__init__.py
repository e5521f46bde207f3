"""Collections that every region can write at any time, merged later: the pure part, a fold of one region's log.

Each region has a log of its own. What its programs do is validated by its fold and becomes *effects*, with a number, a hybrid
clock and what they depend on. Effects of other regions come into the log as records, so a replica stays a fold of one log (ADR
46). History, watch, snapshots, state hashes and trimming work as for any other fold.

============== =======================================================================
``stamps``      hybrid clocks, dots and vectors
``ops``         what is appended to a region's log, and what the fold answers
``effects``     what travels from region to region
``kinds``       the kinds of collections: rows, and how two versions of one are joined
``regions``     what a log knows of regions: the stable vector, votes, admission
``rows``        the tables, and what is derived from rows: ends, gone rows, content hash
``applying``    what each write does to a row; the conflict feed
``out``         own effects, and those that are kept for others
``home``        from requests to an effect
``imports``     effects of others
``sync``        rows of another region, joined in many records, and a switch to them
``deciding``    admission, eviction, retirement, reclaimed rights, clocks that are off
``unseen``      what nobody took of an evicted region, listed as conflicts
``following``   what follows from an operation: grants, collection, ends
``fold``        the fold itself
``reading``     rows as readers see them, conflicts, status
``exchange``    what regions ask and answer
============== =======================================================================

Not wired yet: no space registers this fold, no handle or command reads or writes it, and no transport carries the exchange. Only
its own tests do, which run it in simulated regions. Its stored bytes may change until a space has them.

Pure. May import ``fold.api``, ``codec`` and the ground: config, errors.
"""
