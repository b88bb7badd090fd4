"""Readers of checkpoint formats: safetensors, ``torch.save``, torch.distributed.checkpoint."""
