"""Checks behind ``onefold doctor``, and behind ``onefold explain`` for collections: facts, and verdicts on them.

Reads only. May import everything except the command line and ``aio``; nodes and collections do not import it.
"""
