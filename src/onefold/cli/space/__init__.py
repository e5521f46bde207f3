"""The commands about a space as a whole: status, explain, doctor, and keeping copies of it.

May import the other packages of commands, whose names and formats it uses, and all below ``cli``.
"""
