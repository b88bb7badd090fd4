"""Bridges to other libraries, each a few lines over the public API; none is imported unless asked for."""
