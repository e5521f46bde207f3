"""Exporting the collections of a space as lines of JSON, and importing them into any other space.

May import everything in ``state``.
"""
