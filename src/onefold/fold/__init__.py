"""Folds: deterministic state machines over the log, and the replicas that keep their state."""
