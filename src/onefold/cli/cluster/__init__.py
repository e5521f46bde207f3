"""The commands about clusters: starting and making them, nodes, and how they stand.

May import the other commands' options and output, and all below ``cli``.
"""
