"""The Triton kernel: ``fill.fill`` is launched, the other modules are its parts. Imports nothing else of fastinit."""
