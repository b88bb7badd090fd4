"""Where checkpoints come from: addresses, schemes, downloads, model zoos."""
