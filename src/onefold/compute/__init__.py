"""Jobs: frozen plans, tasks handed out by a fold of the log, and results that can be read while they run.

From the bottom up: ``frames``, ``aggregates``, ``plan``, ``jobs`` (the fold), ``code``, ``sources``, ``tasks``, ``publish``,
``results``, ``submission``, ``execution``; and on top ``engine``, ``runs`` and ``dataset``, which users hold. May import
``display`` and everything below it, not ``state``.
"""
