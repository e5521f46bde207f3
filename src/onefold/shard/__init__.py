"""One shard of a space: appending, reading views at a level of freshness, in an embedded file, in memory or over a log.

``api`` is the contract. May import ``store``, ``fold``, ``log``, ``machine`` and the ground; knows neither collections nor jobs.
"""
