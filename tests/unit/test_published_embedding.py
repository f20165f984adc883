"""Embedding under `scheme: published` against the plain formula on the distance matrices that the published code made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from published_checkpoint import far_reaching
from published_model import published_model
from safetensors.torch import load_file, save_file

from corpus.scales import GeneScale, ScaleConfig
from downstream.embedding import Embedder, load_embedder
from downstream.representation import represent_cells
from stofm.errors import BadSlice
from stofm.gene_tokens import GeneTokens
from stofm.published import read_published

CELLS = GeneTokens(np.zeros(0, np.uint32), np.zeros(1, np.int64))  # their tokens are not read after the cell encoder


@pytest.fixture(scope="module")
def parity(shared_data) -> dict[str, torch.Tensor]:
    paths = [shared_data / "parity" / f"{name}.safetensors" for name in ("extraction", "model_forward")]
    if not all(path.is_file() for path in paths):
        pytest.skip(f"outputs of the published code: not all of {paths}")
    return load_file(paths[0]) | load_file(paths[1])


@pytest.fixture(scope="module")
def weights(parity) -> dict[str, torch.Tensor]:
    return far_reaching({name.removeprefix("weights/"): value for name, value in parity.items() if name.startswith("weights/")}, times=50)


@pytest.fixture(scope="module")
def embedder(weights, tiny_run, tmp_path_factory) -> Embedder:
    """The published weights in a model whose other parts are not used here."""
    folder = tmp_path_factory.mktemp("published")
    save_file(weights, folder / "se2.safetensors")
    (folder / "config.json").write_text("{}")
    found = load_embedder(tiny_run / "model", device="cpu")
    model = replace(found.model, se2_transformer=read_published(folder / "se2.safetensors", folder / "config.json"))
    return replace(found, model=model, scales=ScaleConfig(scheme="published"))


def scale_of(coords: np.ndarray, rows: np.ndarray) -> GeneScale:
    return GeneScale(rows, np.zeros(len(rows), np.uint64), CELLS, coords)


@pytest.fixture(scope="module")
def representations(parity, embedder) -> np.ndarray:
    """Of all cells of the slice, handed over in another order than that of the file."""
    coords, embeddings = parity["coordinates"].numpy(), parity["cell_embeddings"].numpy()
    rows = np.random.default_rng(0).permutation(len(coords))
    found = np.empty_like(embeddings)
    found[rows] = represent_cells(scale_of(coords[rows], rows), embeddings[rows], embedder)
    return found


@torch.no_grad()
def expected(parity, weights, number: int, *, distances: torch.Tensor | None = None) -> torch.Tensor:
    """The plain formula on one sub-slice of the published code; representations of its cells."""
    index = parity[f"sub_slice/{number}/cell_index"].long()
    virtual = parity["virtual_embeddings"]
    embeddings = torch.cat([torch.zeros(1, 256), virtual, parity["cell_embeddings"][index[index >= 0]]])
    types = torch.cat([torch.ones(1), torch.full((len(virtual),), 2), torch.zeros(int((index >= 0).sum()))])
    distances = parity[f"sub_slice/{number}/distances"] if distances is None else distances
    return published_model(weights, embeddings[None], distances[None], types[None])[0][0, index >= 0]


@pytest.mark.parametrize("number", range(2))
def test_embeddings_are_those_of_the_plain_formula_on_published_distances(parity, weights, representations, number):
    index = parity[f"sub_slice/{number}/cell_index"]
    np.testing.assert_allclose(representations[index[index >= 0]], expected(parity, weights, number), atol=2e-5, rtol=0)


def test_the_comparison_feels_distances(parity, weights):
    other = expected(parity, weights, 1, distances=parity["sub_slice/1/distances"] * 0.9)
    assert (other - expected(parity, weights, 1)).abs().max() > 1e-2


def test_every_cell_is_represented(representations):
    assert np.isfinite(representations).all()


@pytest.mark.parametrize(("motion", "is_same"), [(lambda coords: coords[:, ::-1] * [-1.0, 1.0], False), (lambda coords: 7.0 * coords + 50.0, True)])
def test_embeddings_follow_the_axes_of_the_file_and_not_the_unit(parity, embedder, motion, is_same):
    """A quarter turn keeps squares and scale, but Leiden sees other sums of places and components."""
    coords, embeddings = parity["coordinates"].numpy()[:600], parity["cell_embeddings"].numpy()[:600]
    usual, moved = (represent_cells(scale_of(some, np.arange(600)), embeddings, embedder) for some in (coords, motion(coords)))
    assert (np.abs(moved - usual).max() <= 2e-5) == is_same


@pytest.mark.parametrize(
    ("coords", "said"),
    [(np.zeros((30, 2)), "all cells lie in one point"), (np.stack([np.arange(1200.0), np.zeros(1200)], axis=1), "1200 cells lie in one line")],
    ids=["point", "line"],
)
def test_a_slice_without_extent_is_refused(embedder, coords, said):
    embeddings = np.random.default_rng(0).normal(size=(len(coords), 256)).astype(np.float32)
    with pytest.raises(BadSlice, match=said):
        represent_cells(scale_of(coords, np.arange(len(coords))), embeddings, embedder)


@pytest.mark.parametrize("n_cells", [2, 3])
def test_slices_of_few_cells_are_embedded(embedder, n_cells):
    rng = np.random.default_rng(0)
    scale = scale_of(rng.uniform(0, 100, (n_cells, 2)), np.arange(n_cells))
    assert np.isfinite(represent_cells(scale, rng.normal(size=(n_cells, 256)).astype(np.float32), embedder)).all()
