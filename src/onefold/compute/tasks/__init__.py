"""One task in a worker process: its specification, reading, kernels, Python functions, shuffle and reduce, output and failure.

Nothing here knows the log: tasks get bytes and give bytes. May import ``compute.plan``, ``sources``, ``aggregates``, ``frames``,
``code`` and ``blobs``.
"""
