"""The log: its contract (``api``) and its engines (``memory``, ``sqlite``, ``jetstream``).

May import ``machine`` and the ground; knows no folds.
"""
