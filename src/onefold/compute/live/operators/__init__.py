"""Keyed operators of live jobs, as functions of a batch and a state. They read no log, no clock and no blob.

An operator turns the rows of a batch into a **delta** (what a state run holds), into rows that came too late, and into a new
state; and a watermark that moves into the rows that are now final. A worker commits these together and drops them together.

- ``result``: what a batch gives;
- ``of_windows``: what aggregates by windows have in common;
- ``windowed``: aggregates by tumbling and sliding windows;
- ``sessions``: aggregates by sessions;
- ``running``: aggregates without a window.

May import ``runs``, and ``compute.aggregates``, ``frames`` and ``plan``.
"""
