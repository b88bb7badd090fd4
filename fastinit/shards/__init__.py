"""Distributed tensors: which parts of them are here, and agreement among ranks."""
