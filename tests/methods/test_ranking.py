"""Counting by bits finds the same entries as a full sort, wherever the pieces are cut."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.methods.ranking import ends_of_largest, kept_elements, ranks_among


def sorted_ends(magnitudes, counts):
    order = torch.argsort(magnitudes, descending=True, stable=True)
    return [
        (magnitudes[order[count - 1]].item(), order[count - 1].item()) if count else (math.inf, -1)
        for count in counts
    ]


def pieces_of_size(magnitudes, size):
    return lambda: iter(magnitudes.split(size))


ENTRIES = st.one_of(
    st.floats(min_value=0, max_value=torch.finfo(torch.float32).max, width=32),
    st.sampled_from([0.0, -0.0, 1.0, 1.0000001192092896, 1e-45]),
)


@given(st.lists(ENTRIES, min_size=1, max_size=40), st.integers(1, 41), st.data())
def test_ends_are_those_of_a_stable_sort(values, size, data):
    magnitudes = torch.tensor(values)
    counts = sorted(data.draw(st.lists(st.integers(0, len(values)), min_size=1, max_size=5)))

    ends, last_indexes = ends_of_largest(pieces_of_size(magnitudes, size), counts)

    expected = sorted_ends(magnitudes, counts)
    assert list(zip(ends.tolist(), last_indexes.tolist(), strict=True)) == expected


@given(st.lists(ENTRIES, min_size=1, max_size=40), st.integers(1, 41), st.data())
def test_a_rank_counts_the_selections_that_leave_an_entry_out(values, size, data):
    magnitudes = torch.tensor(values)
    counts = sorted(data.draw(st.lists(st.integers(0, len(values)), min_size=1, max_size=5)))
    ends, last_indexes = ends_of_largest(pieces_of_size(magnitudes, size), counts)
    order = torch.argsort(magnitudes, descending=True, stable=True).tolist()

    found, start = [], 0
    for piece in magnitudes.split(size):
        found += ranks_among(piece, start, ends, last_indexes).tolist()
        start += len(piece)

    assert found == [
        sum(entry not in order[:count] for count in counts) for entry in range(len(values))
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_thousands_of_equal_magnitudes_are_cut_by_index(dtype):
    generator = torch.Generator().manual_seed(3)
    magnitudes = torch.randn(100_000, generator=generator).to(dtype).float().abs()
    counts = [kept_elements(density, len(magnitudes)) for density in (0.001, 0.1, 0.5, 0.9, 1)]

    ends, last_indexes = ends_of_largest(pieces_of_size(magnitudes, 7_777), counts)

    assert list(zip(ends.tolist(), last_indexes.tolist(), strict=True)) == sorted_ends(
        magnitudes, counts
    )
