"""Engines: one protocol, one file per backend, and the choice among them."""
