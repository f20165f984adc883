"""The published extraction: what it gives by its own rules, and on real outputs of the published code where they are at hand."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy.spatial.distance import cdist
from synth import corpus_config, random_cells

from corpus.build import build_corpus
from corpus.published_scheme import PublishedScales, extract_published, published_distances
from corpus.scales import ScaleConfig, embedded_records, extract_gene_scale
from pretrain.config import PretrainConfig
from pretrain.train import train
from stofm.errors import BadSlice, ConfigError
from stofm.fields import PUBLISHED_PLACES, PUBLISHED_VIRTUAL_PLACES, ROWS, VIRTUAL_OF_CELL
from stofm.gene_tokens import GeneTokens


@pytest.fixture(scope="module")
def reference(shared_data) -> dict[str, np.ndarray]:
    path = shared_data / "parity" / "extraction.safetensors"
    if not path.is_file():
        pytest.skip(f"published extraction: no file {path}")
    return load_file(path)


@pytest.fixture(scope="module")
def extracted(reference) -> PublishedScales:
    return extract_published(reference["coordinates"], reference["cell_embeddings"])


def test_virtual_cells_are_those_of_the_published_code(reference, extracted):
    np.testing.assert_allclose(extracted.virtual.coords_um, reference["virtual_coordinates"], atol=1e-5)
    np.testing.assert_allclose(extracted.virtual.embeddings, reference["virtual_embeddings"], atol=1e-6)


def test_there_are_as_many_sub_slices_as_in_the_published_code(extracted):
    assert len(extracted.sub_slices) == 4


@pytest.mark.parametrize("number", range(4))
def test_sub_slices_are_those_of_the_published_code(reference, extracted, number):
    index = reference[f"sub_slice/{number}/cell_index"]
    assert extracted.sub_slices[number].tolist() == index[index >= 0].tolist()
    assert (index < 0).sum() == 1 + len(extracted.virtual.sizes)


@pytest.mark.parametrize("number", range(2))
def test_distances_are_those_of_the_published_code(reference, extracted, number):
    distances = published_distances(extracted.places[extracted.sub_slices[number]], extracted.virtual.coords_um)
    np.testing.assert_allclose(distances, reference[f"sub_slice/{number}/distances"], atol=2e-5)


def test_places_are_measured_by_the_diagonal_of_the_bounding_box():
    coords, embeddings, _ = random_cells(0, 200)
    places = extract_published(coords * [3.0, 1.0] + 500.0, embeddings).places
    assert np.linalg.norm(np.ptp(places, axis=0)) == pytest.approx(100.0)
    np.testing.assert_allclose(places.max(axis=0), -places.min(axis=0))


@pytest.mark.parametrize(("n_cells", "n_squares"), [(1000, 1), (1001, 2), (4000, 5)], ids=["whole", "two", "five"])
def test_every_cell_is_in_exactly_one_square(n_cells, n_squares):
    places = np.random.default_rng(0).uniform(0, [3000.0, 1000.0], (n_cells, 2))
    parts = extract_published(places, random_cells(0, n_cells)[1]).sub_slices
    assert np.sort(np.concatenate(parts)).tolist() == list(range(n_cells))
    assert len(parts) >= n_squares


def test_a_crowded_square_is_cut_by_row_order():
    places = np.concatenate([np.random.default_rng(0).uniform(0, 1, (3500, 2)), [[100.0, 100.0]]])
    parts = extract_published(places, random_cells(0, 3501)[1]).sub_slices
    assert [len(part) for part in parts] == [1167, 1167, 1166, 1]
    assert np.concatenate(parts).tolist() == list(range(3501))


def test_distances_are_known_between_neighbours_and_with_virtual_cells():
    places = np.random.default_rng(0).uniform(-30, 30, (120, 2))
    places[5] = places[4]
    virtual = np.array([[1.0, 2.0], [-20.0, 9.0]])
    distances = published_distances(places, virtual)
    is_known = distances < 100
    assert distances.shape == (123, 123)
    assert not distances[0].any()
    assert not distances[:, 0].any()
    np.testing.assert_allclose(distances[1:3, 3:], cdist(virtual, places), rtol=1e-6)
    np.testing.assert_array_equal(distances, distances.T)
    assert distances[3 + 4, 3 + 5] == 100
    between = cdist(places, places)
    np.testing.assert_allclose(distances[3:, 3:][is_known[3:, 3:]], between[is_known[3:, 3:]], rtol=1e-6)
    assert is_known[3:, 3:].sum(axis=1).min() >= 46  # of 50, less itself, <cls> and two virtual cells, or one at its place


@pytest.mark.parametrize("n_cells", [2, 3, 12])
def test_slices_of_few_cells_are_extracted(n_cells):
    coords, embeddings, _ = random_cells(0, n_cells)
    scales = extract_published(coords, embeddings)
    assert scales.virtual.sizes.sum() == n_cells
    assert np.isfinite(published_distances(scales.places, scales.virtual.coords_um)).all()


def test_cells_that_express_alike_are_clustered_by_place():
    coords, embeddings, _ = random_cells(0, 300)
    assert len(extract_published(coords, np.repeat(embeddings[:1], 300, axis=0)).virtual.sizes) > 1


@pytest.mark.parametrize(
    ("coords", "said"),
    [(np.zeros((9, 2)), "all cells lie in one point"), (np.stack([np.arange(1500.0), np.zeros(1500)], axis=1), "1500 cells lie in one line")],
    ids=["point", "line"],
)
def test_a_slice_without_extent_is_refused(coords, said):
    with pytest.raises(BadSlice, match=said) as refusal:
        extract_published(coords, random_cells(0, len(coords))[1])
    assert refusal.value.code == "DEGENERATE_GEOMETRY"


def test_records_of_the_scheme_hold_what_the_distances_need(tiny_corpus):
    truth, scales = tiny_corpus.truth("slice_0"), ScaleConfig(scheme="published")
    scale = extract_gene_scale(truth.counts, truth.human_ids, truth.coords_um, tiny_corpus.vocab, scales.rank_value)

    def embed(tokens: GeneTokens) -> np.ndarray:
        return np.random.default_rng(0).normal(size=(len(tokens.lengths), 256)).astype(np.float32)

    ((arrays, n_cells, _),) = embedded_records(scale, embed, scales)
    expected = extract_published(truth.coords_um[np.sort(scale.rows)], embed(scale.tokens)[np.argsort(scale.rows)])
    assert arrays[ROWS].tolist() == np.sort(scale.rows).tolist()
    assert n_cells == len(scale.rows)
    np.testing.assert_allclose(arrays[PUBLISHED_PLACES], expected.places, atol=1e-5)
    np.testing.assert_allclose(arrays[PUBLISHED_VIRTUAL_PLACES], expected.virtual.coords_um, atol=1e-5)
    np.testing.assert_array_equal(arrays[VIRTUAL_OF_CELL], expected.virtual.of_cell)


def test_training_refuses_a_corpus_of_the_published_scheme(simulated_paths, tmp_path):
    config = corpus_config(simulated_paths[:1], tmp_path / "corpus")
    build_corpus(config.model_copy(update={"scales": ScaleConfig(scheme="published")}))
    with pytest.raises(ConfigError, match="found `scheme: published`; training expects `tissue`"):
        train(PretrainConfig(corpus=str(tmp_path / "corpus"), out=str(tmp_path / "run")))
