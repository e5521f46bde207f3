"""What is done for a whole space from time to time, with live jobs and without.

==========  ==========================================================================================
module      what it has
==========  ==========================================================================================
``duties``  what is due, such as blobs that nothing names, for all that look at it
``keeper``  the thread that does it
==========  ==========================================================================================

May import ``live`` and what is below it. Importing it imports nothing of ``live``: programs without live jobs look too.
"""
