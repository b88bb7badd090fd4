"""What runs a plan: the scope of a call, its pending fills, the runner, and the report."""
