"""Where bounded and live input meet.

``stream_ranges``: a stream's records up to now as input of a batch job. ``histories``: the batch job of a live one's history.

Stands above the engine and live jobs: may import all of ``compute`` but ``starting`` and ``live_starting``, and
``state``.
"""
