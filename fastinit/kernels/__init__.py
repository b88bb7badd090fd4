"""The Triton kernel: ``fill.fill`` is launched, the other modules are what it is made of. Nothing here imports the rest."""
