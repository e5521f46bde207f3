"""What a node reports about itself: log lines, traces, and the HTTP server for health and metrics.

May import everything below ``node``, and nothing of the node itself.
"""
