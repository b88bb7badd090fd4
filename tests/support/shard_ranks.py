"""All checks of shards on several ranks, which one start of the processes runs."""

from __future__ import annotations

import ranks_agreement
import ranks_checkpoints
import ranks_digests
import ranks_fills
import ranks_init
import ranks_plans
import ranks_recording
from ranks import CHECKS

MODULES = (ranks_fills, ranks_init, ranks_plans, ranks_recording, ranks_agreement, ranks_checkpoints, ranks_digests)
# ranks.check registers a check where its module is imported.
assert {function.__module__ for function, _ in CHECKS.values()} == {module.__name__ for module in MODULES}
