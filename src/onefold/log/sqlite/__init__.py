"""The log in one SQLite file: the engine of embedded spaces, its file, and files that several spaces of a process share.

May import ``log.api``, ``machine`` and the ground.
"""
