"""The log: its contract (``api``) and its engines."""
