"""From a plan to a stored job: compiling into stages, resolving and splitting sources, finding what was computed before.

May import ``compute.plan``, ``sources``, ``code``, ``jobs``, ``blobs``, ``publish``, ``results`` and what describes tasks; not
what runs them.
"""
