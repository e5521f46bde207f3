"""Polars frames made of Python values, and types that fit several frames, however their rows were split.

The lowest package of ``compute``: may import ``foreign``, ``machine`` and ``errors`` only.
"""
