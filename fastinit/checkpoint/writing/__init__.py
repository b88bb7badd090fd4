"""Writing checkpoints whose values are not in memory: they are drawn piece by piece, and files appear whole or not."""
