"""What the processes of one machine share: file locks, members, wake-ups; and what signals and forks must not break.

Knows no logs. May import the ground (``errors``, ``config``, ``env``) only.
"""
