"""From an ``init_cfg`` to items: rules, what they match, schemes and initializers."""
