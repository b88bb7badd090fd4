"""Checkpoint files and the tensors in them: reading, mapping, copying."""
