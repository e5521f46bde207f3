"""Results of jobs: live tables and their estimates while a job runs; and what is kept of a finished one, as data.

Readers need neither the program that made a result nor its Python: nothing here unpickles a plan, except ``earlier``, which reads
the plans of releases that wrote no description. May import ``compute.client``, and
``tasks`` for what describes their outputs; not what runs them.
"""
