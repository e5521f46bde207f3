"""The commands about jobs: programs, runs, tables and live jobs.

May import ``cli.endings``, ``keys``, ``options`` and ``output``, and all below ``cli``.
"""
