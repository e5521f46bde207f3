"""Simulated regions, and a model of what they must agree on."""
