"""Where the rows of a live job go: into its table, a map, a stream or a function, and to other shards.

==============  ====================================================================================================
module          what it has
==============  ====================================================================================================
``outputs``     which rows a commit gives to its part's sink, and which it takes back
``writers``     rows as writes of a map or a stream, or as calls of a function; those that cannot be written
``forwarder``   what commits send to other shards, done there once
``settling``    the same by those that end a job whose workers are gone
``left``        what that is to end, found without what computes
``hop_rows``    rows on their way from one part of a job to the next
==============  ====================================================================================================

May import ``inputs``, ``operators``, ``plan``, ``client`` and what is below them.
"""
