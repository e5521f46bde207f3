"""The code in jobs: how functions and plans are pickled, loaded and named, and what they need of a node.

``identity`` decides when a task is the same as before. May import ``compute.plan``, ``compute.aggregates`` and
``compute.frames``; not what runs tasks.
"""
