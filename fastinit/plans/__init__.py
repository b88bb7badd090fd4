"""The plan: immutable records of what will be written where. The waist of the hourglass: no config, no backend here.

A plan is a sequence of items (``Fill``, ``Copy``, ``Replay``, ``Call``) in the order in which they take effect.
"""

from .alike import html_of_what_counts, what_counts
from .coverage import covered, written_in_full
from .differences import PlanDiff
from .digests import Digest, DigestDiff, TensorDigest
from .distributions import (
    Constant,
    DeltaOrthogonal,
    Dirac,
    Distribution,
    Identity,
    Normal,
    Number,
    Orthogonal,
    Sparse,
    Structured,
    TorchTruncatedNormal,
    TruncatedNormal,
    Uniform,
    describe,
    is_drawn,
    is_structured,
    matrices_of,
    numbers_of,
    real_number,
)
from .geometry import Region, Strided, byte_span, may_overlap, row_major
from .items import (
    Box,
    Call,
    Copy,
    CopyEntry,
    Fill,
    Item,
    LoadResult,
    Replay,
    ReplayEntry,
    n_bytes_of,
    tensors_of,
)
from .planned import Plan
from .rows import COLUMNS, MAX_ROWS, Row, in_the_end, row_json, rows_of
from .texts import MAX_NAMES, names_line, notes_of, nothing_copied

__all__ = [
    "COLUMNS",
    "MAX_NAMES",
    "MAX_ROWS",
    "Box",
    "Call",
    "Constant",
    "Copy",
    "CopyEntry",
    "DeltaOrthogonal",
    "Digest",
    "DigestDiff",
    "Dirac",
    "Distribution",
    "Fill",
    "Identity",
    "Item",
    "LoadResult",
    "Normal",
    "Number",
    "Orthogonal",
    "Plan",
    "Region",
    "PlanDiff",
    "Replay",
    "ReplayEntry",
    "Row",
    "Sparse",
    "Strided",
    "TensorDigest",
    "Structured",
    "TorchTruncatedNormal",
    "TruncatedNormal",
    "Uniform",
    "byte_span",
    "covered",
    "describe",
    "html_of_what_counts",
    "in_the_end",
    "is_drawn",
    "is_structured",
    "matrices_of",
    "may_overlap",
    "n_bytes_of",
    "names_line",
    "notes_of",
    "nothing_copied",
    "numbers_of",
    "row_json",
    "real_number",
    "row_major",
    "rows_of",
    "tensors_of",
    "what_counts",
    "written_in_full",
]
