"""What two slices have in common, and what that proves."""

from __future__ import annotations

import numpy as np
import pytest
from synth import random_counts

from corpus.overlap import judge, looks_requantified, overlap_of_sketches, profile_correlations
from corpus.sketch import sketch_slice

GENES = np.array([f"ENSG{number:011d}" for number in range(40)])


def test_the_share_of_a_larger_slice_is_estimated_from_its_sketch():
    counts = random_counts(3, 8000, 40)
    part = sketch_slice("part", counts[:2000], GENES)
    found = overlap_of_sketches(part, sketch_slice("whole", counts, GENES))
    assert found.of_first == 1.0
    assert found.of_second == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize(
    ("n_shared", "n_sets", "chance", "finding"),
    [(90, 100, 0.0, "copy"), (89, 100, 0.0, "overlap"), (10, 1000, 0.0, "overlap"), (9, 900, 0.0, "distinct"), (10, 1001, 0.0, "distinct"),
     (30, 100, 0.2, "distinct"), (40, 100, 0.2, "overlap"), (100, 100, 0.51, "unclear"), (9, 9, 0.0, "unclear")],
)  # fmt: skip
def test_what_common_sets_prove(n_shared, n_sets, chance, finding):
    assert judge(n_shared, n_sets, chance) == finding


def test_profiles_are_correlated_over_the_genes_that_both_measured():
    counts = random_counts(4, 300, 40)
    sketches = [sketch_slice("all", counts, GENES), sketch_slice("some", counts[:, 5:30], GENES[5:30])]
    a, b = sketches[0].log_profile[5:30], sketches[1].log_profile
    correlations, n_shared = profile_correlations(sketches[:1], sketches)
    np.testing.assert_allclose(correlations, [[1.0, np.corrcoef(a, b)[0, 1]]], rtol=1e-9)
    assert n_shared.tolist() == [[40, 25]]


def test_slices_without_a_common_gene_have_no_correlation():
    counts = random_counts(4, 300, 40)
    one, other = sketch_slice("one", counts[:, :20], GENES[:20]), sketch_slice("other", counts[:, 20:], GENES[20:])
    correlations, n_shared = profile_correlations([one], [other])
    assert (correlations.tolist(), n_shared.tolist()) == ([[0.0]], [[0]])


@pytest.mark.parametrize(
    ("n_genes", "n_shared", "n_cells", "correlation", "expected"),
    [
        ((100, 100), 100, (1000, 800), 0.997, True),
        ((100, 100), 100, (1000, 800), 0.9969, False),
        ((100, 100), 100, (1000, 799), 0.999, False),
        ((100, 90), 90, (1000, 1000), 0.999, True),
        ((100, 89), 89, (1000, 1000), 0.999, False),
    ],
    ids=["alike", "sibling", "other size", "nearly one panel", "other panel"],
)
def test_which_slices_may_be_one_quantified_twice(n_genes, n_shared, n_cells, correlation, expected):
    assert looks_requantified(n_genes, n_shared, n_cells, correlation) is expected
