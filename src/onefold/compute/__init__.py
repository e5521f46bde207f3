"""Jobs: frozen plans, tasks handed out by a fold of the log, and results that can be read while they run.

From the bottom up:

- ``foreign`` and ``loading`` (code of others), ``frames`` and ``renames``, ``aggregates`` and ``statistics``;
- ``plan``, ``jobs`` (the fold), ``blobs`` and ``code``, ``sources``, ``publish`` and ``tasks``;
- ``arguments``, ``client`` (operations on the log), ``garbage``, ``results``, ``submission``, ``execution``;
- ``live`` (jobs over streams), ``engine`` (which joins all that), ``node_worker``;
- ``runs``, ``live_runs``, ``dataset`` and ``live_dataset``, which users hold;
- ``launching``, ``bounded``, ``starting`` and ``live_starting``.

Nothing imports what stands above it, not even inside a function or for a type. May import ``display`` and everything below it.
``live``, ``bounded`` and the modules of live jobs may also import ``state``; jobs over files may not.
"""
