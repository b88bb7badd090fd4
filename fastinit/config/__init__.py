"""Turns an ``init_cfg`` into plan items: rules, matching, schemes and initializers."""
