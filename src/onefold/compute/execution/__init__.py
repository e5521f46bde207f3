"""Running the tasks of a run: claims and their leases, attempts, publishing at the end.

It drives ``compute.tasks`` and records what came out by ``compute.jobs``. May import ``compute.submission`` and what is below
it; not ``compute.engine``, which starts its runners, nor what is above that.
"""
