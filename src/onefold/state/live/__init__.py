"""Live jobs among the collections of a space. Their handles are in ``compute.live``, which stands above ``state``.

May import ``core``, ``fold`` and the packages below ``state``.
"""
