"""What a node reports about itself: log lines, metrics, traces, and the HTTP server for health and metrics.

May import everything below ``node``; of the node itself the types only.
"""
