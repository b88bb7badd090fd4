"""What checkpoint files are: safetensors, ``torch.save``, torch.distributed.checkpoint."""
