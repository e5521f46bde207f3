"""Jobs: frozen plans, tasks handed out by a fold of the log, and results that can be read while they run.

From the bottom up: ``frames``, ``aggregates``, ``plan``, ``jobs`` (the fold), ``code``, ``sources``, ``tasks``, ``publish``,
``client`` (operations on the log), ``garbage``, ``results``, ``submission``, ``execution``, ``engine`` (which joins them),
``node_worker``; and on top ``runs`` and ``dataset``, which users hold, ``launching`` and ``starting``. Nothing imports what
stands above it, not even inside a function or for a type. May import ``display`` and everything below it, not ``state``.
"""
