"""What the processes of one machine share: file locks, members, wake-ups; what signals and forks must not break,
and heavy modules that are imported when they are first used.

Knows no logs. May import the ground only (``errors``, ``config``, ``env``, ``ids``).
"""
