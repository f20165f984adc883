"""Laws of copies: whatever was done to a slice, it is found; what shares no cell with the corpus is not."""

from __future__ import annotations

import numpy as np
import pytest
from planted_copies import COPIES, plant
from scipy.sparse import csr_matrix, vstack

from corpus.copies import find_copies
from corpus.gene_ids import load_gene_tables
from corpus.readers import read_slice
from corpus.sketch import sketch_slice
from corpus.slice import SliceSpec
from corpus.truth import truth_of

REAL = ["dlpfc_151673", "dlpfc_151674", "her2st_F1", "merfish_mpoa_bp021", "osmfish_ssctx", "starmap_mpfc_BZ5", "xenium_breast_bidcell"]
TOO_LITTLE = {  # 32 genes and 132, of which a few are left: another section would have most of the same sets
    ("osmfish_ssctx", "half the genes"),
    ("osmfish_ssctx", "half the tissue and genes"),
    ("osmfish_ssctx", "a tenth of the genes"),
    ("osmfish_ssctx", "a tenth of tissue and genes"),
    ("merfish_mpoa_bp021", "a tenth of the genes"),
    ("merfish_mpoa_bp021", "a tenth of tissue and genes"),
}
SIBLINGS = {"dlpfc_151674": "dlpfc_151673", "merfish_mpoa_bp026": "merfish_mpoa_bp021", "starmap_mpfc_BZ9": "starmap_mpfc_BZ5"}


def ask(counts, human_ids, truths):
    return find_copies(counts, human_ids, [sketch_slice(name, one.counts, one.human_ids) for name, one in truths.items()], truths.__getitem__)


@pytest.fixture(scope="session")
def simulated(tiny_corpus):
    return {slice_id: tiny_corpus.truth(slice_id) for slice_id in tiny_corpus.slice_ids}


@pytest.fixture(scope="session")
def real(shared_data):
    """Seven real slices of six technologies, human and mouse."""
    specs = [SliceSpec(path=str(shared_data / "data" / f"{name}.h5ad"), um_per_unit=1.0) for name in REAL]
    return {name: truth_of(read_slice(spec), load_gene_tables())[0] for name, spec in zip(REAL, specs, strict=True)}


@pytest.mark.parametrize("kind", [kind for kind in COPIES if "tenth of the genes" not in kind and "tenth of tissue" not in kind])
@pytest.mark.parametrize("name", ["slice_0", "slice_1"], ids=["human", "mouse"])
def test_a_copy_of_a_simulated_slice_was_seen(simulated, name, kind):
    answer = ask(*plant(simulated[name], kind), simulated)
    assert (answer.verdict, answer.matches[0].slice_id, answer.matches[0].containment) == ("seen", name, 1.0)


@pytest.mark.parametrize("name", ["slice_0", "slice_1", "slice_2"])
def test_a_simulated_slice_that_is_left_out_was_not_seen(simulated, name):
    assert ask(simulated[name].counts, simulated[name].human_ids, {key: one for key, one in simulated.items() if key != name}).verdict == "not seen"


@pytest.mark.parametrize("kind", COPIES)
@pytest.mark.parametrize("name", REAL)
def test_a_copy_of_a_real_slice_was_seen_unless_too_little_is_left(real, name, kind):
    answer = ask(*plant(real[name], kind), real)
    if (name, kind) in TOO_LITTLE:
        assert answer.verdict == "cannot tell"
    else:
        assert (answer.verdict, answer.matches[0].slice_id, answer.matches[0].containment) == ("seen", name, 1.0)


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_sibling_section_is_not_a_copy(real, shared_data, name):
    spec = SliceSpec(path=str(shared_data / "data" / f"{name}.h5ad"), um_per_unit=1.0)
    truth = truth_of(read_slice(spec), load_gene_tables())[0]
    answer = ask(truth.counts, truth.human_ids, {key: one for key, one in real.items() if key != name})
    assert answer.verdict == "not seen"
    assert SIBLINGS[name] in [match.slice_id for match in answer.matches]  # it was looked at


def test_values_do_not_matter_where_zeros_are_kept(simulated):
    truth = simulated["slice_0"]
    logged = csr_matrix(truth.counts, dtype=float, copy=True)
    logged.data = np.log1p(logged.data * 3.7)
    assert ask(logged, truth.human_ids, simulated).matches[0].containment == 1.0


def test_a_slice_that_holds_one_of_the_corpus_and_more_was_seen(simulated):
    one, more = simulated["slice_0"], simulated["slice_2"]
    shared = np.intersect1d(one.human_ids, more.human_ids)
    parts = [truth.counts[:, np.searchsorted(truth.human_ids, shared)] for truth in (one, more)]
    answer = ask(csr_matrix(vstack(parts)), shared, {"slice_0": one})
    assert (answer.verdict, answer.matches[0].containment) == ("seen", 1.0)


def test_a_slice_with_some_cells_of_another_is_similar(simulated):
    truth = simulated["slice_0"]
    mixed = csr_matrix(vstack([truth.counts[:100], simulated["slice_0"].counts[:300][:, np.random.default_rng(0).permutation(60)]]))
    answer = ask(mixed, truth.human_ids, {"slice_0": truth})
    assert answer.verdict == "similar"
    assert answer.matches[0].containment == pytest.approx(0.25, abs=0.01)


def test_a_handful_of_cells_cannot_be_told(simulated):
    truth = simulated["slice_0"]
    assert ask(truth.counts[:5], truth.human_ids, simulated).verdict == "cannot tell"
