"""The journal: which operators have part in what a storage holds in the end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hypothesis import given
from hypothesis import strategies as st

from fastinit.recording.journal import Journal, KeptOperator

STORAGES = st.integers(0, 5)
# What an entry reads and what it writes.
ENTRIES = st.lists(st.tuples(st.sets(STORAGES, max_size=2), st.sets(STORAGES, max_size=2)), max_size=12)
Entries = Sequence[tuple[set[int], set[int]]]


def journal_of(entries: Entries) -> Journal:
    kept = [KeptOperator(None, (), {}, (), reads | writes, writes) for reads, writes in entries]
    return Journal(list(kept), dict.fromkeys(range(6), 4))


def by_looking_at_all(entries: Entries, storage_ids: Iterable[int]) -> list[int]:
    wanted, found = set(storage_ids), []
    for position in reversed(range(len(entries))):
        reads, writes = entries[position]
        if writes & wanted:
            wanted |= reads | writes
            found.append(position)
    return found[::-1]


@given(ENTRIES, st.sets(STORAGES, max_size=2))
def test_what_leads_to_a_storage_is_what_writes_it_and_what_that_has_read(entries: Entries, asked: set[int]) -> None:
    journal = journal_of(entries)
    assert journal.leading_to(asked) == [journal.entries[at] for at in by_looking_at_all(entries, asked)]


@given(ENTRIES, st.sets(STORAGES, max_size=2))
def test_a_pruned_journal_leads_to_the_same(entries: Entries, asked: set[int]) -> None:
    journal = journal_of(entries)
    assert journal.pruned(asked).leading_to(asked) == journal.leading_to(asked)
