"""The plan: immutable records of what will be written where. The waist of the hourglass: no config, no backend here.

A plan is a sequence of items (``Fill``, ``Copy``, ``Replay``, ``Call``) in the order in which they take effect.
"""

from .distributions import (
    Constant,
    Distribution,
    Normal,
    Number,
    TruncatedNormal,
    Uniform,
    describe,
    numbers_of,
    real_number,
)
from .geometry import Strided, byte_span, may_overlap, row_major
from .items import Box, Call, Copy, CopyEntry, Fill, Item, LoadResult, Replay, ReplayEntry, n_bytes_of, tensors_of
from .rows import COLUMNS, MAX_ROWS, Plan, Row, row_json, rows_of, table_of
from .texts import MAX_NAMES, names_line, nothing_copied

__all__ = [
    "COLUMNS",
    "MAX_NAMES",
    "MAX_ROWS",
    "Box",
    "Call",
    "Constant",
    "Copy",
    "CopyEntry",
    "Distribution",
    "Fill",
    "Item",
    "LoadResult",
    "Normal",
    "Number",
    "Plan",
    "Replay",
    "ReplayEntry",
    "Row",
    "Strided",
    "TruncatedNormal",
    "Uniform",
    "byte_span",
    "describe",
    "may_overlap",
    "n_bytes_of",
    "names_line",
    "nothing_copied",
    "numbers_of",
    "row_json",
    "real_number",
    "row_major",
    "rows_of",
    "table_of",
    "tensors_of",
]
