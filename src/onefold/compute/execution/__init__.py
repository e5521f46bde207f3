"""Running the tasks of a run: claims and their leases, attempts, workers of programs and of nodes, publishing at the end.

It drives ``compute.tasks`` and records what came out by ``compute.jobs``. May import everything in ``compute`` except the API
on top (``dataset``, ``runs``).
"""
