"""All shards of a space: opening them, cuts through all of them at one moment, and the past.

May import ``shard`` and everything below it; knows neither collections nor jobs.
"""
