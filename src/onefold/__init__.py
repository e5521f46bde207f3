"""Onefold: many machines, one computer. Everything is a fold over one log."""
