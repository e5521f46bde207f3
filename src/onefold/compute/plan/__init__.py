"""Plans as frozen data: the nodes that users write, the stages they are compiled into, their schemas and their text.

Pure: no clock, randomness, sockets or files. May import ``compute.frames``, the types of ``compute.aggregates``, and the ground.
"""
