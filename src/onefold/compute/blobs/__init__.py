"""The contents that jobs store: plans, partials, shuffled rows. Stores in a folder, in JetStream, or on any fsspec file system.

A blob's name is the hash of its content. ``sweeping`` removes those that nothing names any more. May import what is below
``compute``; blobs know neither plans nor tasks nor the fold of jobs.
"""
