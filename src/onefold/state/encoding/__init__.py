"""Keys, values and names as bytes, and back. The bytes are stored: see docs/formats.md.

Pure: no clock, randomness, sockets or files. May import the ground only.
"""
