"""From records of streams to rows of a live job.

================  ==========================================================================================
module            what it has
================  ==========================================================================================
``reading``       pages of a stream's partition, without a consumer; ends of partitions
``preparing``     records become rows with a time; those that cannot are dead
``times``         the event times of several inputs in one type; times that no window can show
``fitting``       a column in another type, where no value of it changes
``made_types``    the types of what functions give: those of the first values
``stream_blobs``  where a space has the large frames of its streams
``python_steps``  functions before the key, in processes of their own
================  ==========================================================================================

May import ``plan`` and ``idleness``, the functions, steps, frames and blobs of jobs over files, ``state`` and the
packages below it.
"""
