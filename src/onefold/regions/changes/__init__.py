"""Regions that go and come: what an operator decides, and what becomes of the log of a region that was evicted.

============== =====================================================================
``deciding``   evict, come again, accept a clock that is ahead; what is waited for
``old_logs``   logs of regions of a folder that were evicted and came again
============== =====================================================================

May import what ``regions`` may, and ``regions``.
"""
