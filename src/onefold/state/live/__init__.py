"""Live jobs among the collections of a space. Their handles are in ``compute.live``, which stands above ``state``.

May import ``core`` and ``fold``.
"""
