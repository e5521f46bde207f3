"""What is kept of a finished job, as data: readers need neither the program that made it nor its Python.

Nothing here unpickles a plan, except ``earlier``, which reads the plans of releases that wrote no description.
"""
