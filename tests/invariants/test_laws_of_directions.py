"""Laws of directional geometry: features turn and mirror with the tissue, representations do not, and what is moved stays hidden."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from e3nn import o3
from e3nn.util.test import assert_equivariant
from synth import MOTIONS, random_cells, random_record, record_of, spot_grid, turned

from pretrain.config import SE2StageConfig
from pretrain.masking import mask_sub_slice
from stofm.batch import SubSliceBatch, collate
from stofm.directional import FEATURES, HARMONICS, SCALARS, Convolution, DirectionalBlock, Edges, edges_between
from stofm.displacement import DisplacementHead
from stofm.fields import COORDS_UM
from stofm.geometry import find_pairs
from stofm.se2_transformer import SE2Transformer, SE2TransformerConfig

CONFIG = SE2TransformerConfig(n_layers=2, n_heads=4, ffn_dim=32, n_radial=8, n_neighbors=6, geometry="directional")
SIZES = (40, 25, 8, 1)  # cells; the second is a spot grid, full of ties, the third lies in two points
SHAPE = {"n_radial": 8, "n_neighbors": 6}


@pytest.fixture(scope="module", autouse=True)
def constants_in_float64() -> Iterator[None]:
    """Modules made here hold e3nn's coefficients in float64, so that laws are tested far below the rounding of float32."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def away_from_start(module: torch.nn.Module) -> torch.nn.Module:
    """The module with its weights away from their start, so that nothing is zero by chance."""
    for parameter in module.eval().requires_grad_(False).parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    return module


@pytest.fixture(scope="module")
def model() -> SE2Transformer:
    torch.manual_seed(0)
    return away_from_start(SE2Transformer(CONFIG))


@pytest.fixture(scope="module")
def head() -> DisplacementHead:
    torch.manual_seed(1)
    return away_from_start(DisplacementHead(**SHAPE))


@pytest.fixture
def batch() -> SubSliceBatch:
    records = [random_record(seed, n_cells, n_outside=20) for seed, n_cells in enumerate(SIZES)]
    records[1][COORDS_UM] = spot_grid(5, 5).astype(np.float32)
    records[2][COORDS_UM] = np.repeat([[0.0, 0.0], [12.0, 3.0]], 4, axis=0).astype(np.float32)
    return in_float64(collate([{**record, "is_masked": np.arange(n) % 5 == 0} for record, n in zip(records, SIZES, strict=True)]))


def in_float64(batch: SubSliceBatch) -> SubSliceBatch:
    return replace(batch, cell_embeddings=batch.cell_embeddings.double(), coords_um=batch.coords_um.double())


def moved_by(motion, batch: SubSliceBatch) -> SubSliceBatch:
    return replace(batch, coords_um=torch.from_numpy(motion(batch.coords_um.numpy())))


def only(batch: SubSliceBatch, which) -> SubSliceBatch:
    arrays = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return replace(batch, **{name: which(values) for name, values in arrays.items() if values is not None})


def random_edges(n_cells: int, n_edges: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return tuple(torch.randint(n_cells, (2, n_edges), generator=rng))


@pytest.mark.parametrize("irreps_in", [SCALARS, FEATURES], ids=["scalars", "features"])
def test_a_convolution_turns_and_mirrors_with_space(irreps_in):
    torch.manual_seed(0)
    convolution = away_from_start(Convolution(irreps_in, FEATURES, **SHAPE))
    sender, receiver = random_edges(10, 40)

    def convolve(features, offset_um):
        return convolution(features, edges_between(sender, receiver, offset_um, length_um=20.0, n_radial=8))

    args = [irreps_in.randn(10, -1), 30 * torch.randn(40, 3)]
    assert_equivariant(convolve, args, irreps_in=[irreps_in, "1o"], irreps_out=[FEATURES], tolerance=1e-10, ntrials=3)


def test_a_block_gives_scalars_that_do_not_turn_and_features_that_do(model):
    block: DirectionalBlock = model.directional
    sender, receiver = random_edges(10, 40)

    def convolve(cells, offset_um):
        return block.of_edges(cells, edges_between(sender, receiver, offset_um, length_um=20.0, n_radial=8))

    args = [torch.randn(10, 256), 30 * torch.randn(40, 3)]
    assert_equivariant(convolve, args, irreps_in=["256x0e", "1o"], irreps_out=["256x0e", FEATURES], tolerance=1e-9, ntrials=3)


def test_a_head_predicts_vectors_that_turn_and_mirror_with_space(head):
    sender, receiver = random_edges(10, 40)

    def predict(cell_repr, features, offset_um):
        return head.of_edges(cell_repr, features, edges_between(sender, receiver, offset_um, length_um=20.0, n_radial=8))

    args = [torch.randn(10, 256), FEATURES.randn(10, -1), 30 * torch.randn(40, 3)]
    assert_equivariant(predict, args, irreps_in=["256x0e", FEATURES, "1o"], irreps_out=["1o"], tolerance=1e-9, ntrials=3)


def test_features_of_one_parity_cannot_pass_for_the_other():
    """The test above can fail: read as pseudovectors, what a convolution gives does not mirror."""
    convolution = away_from_start(Convolution(SCALARS, o3.Irreps("4x1o"), **SHAPE))
    sender, receiver = random_edges(10, 40)

    def convolve(features, offset_um):
        return convolution(features, edges_between(sender, receiver, offset_um, length_um=20.0, n_radial=8))

    args = [SCALARS.randn(10, -1), 30 * torch.randn(40, 3)]
    with pytest.raises(AssertionError, match="equivariance error"):
        assert_equivariant(convolve, args, irreps_in=[SCALARS, "1o"], irreps_out=["4x1e"], tolerance=1e-3)


@pytest.mark.parametrize("motion", MOTIONS.values(), ids=MOTIONS.keys())
def test_turning_shifting_and_mirroring_the_tissue_change_no_representation(model, batch, motion):
    moved = model(moved_by(motion, batch)).cell_repr
    torch.testing.assert_close(moved[~batch.is_padding], model(batch).cell_repr[~batch.is_padding], atol=1e-9, rtol=0)


@pytest.mark.parametrize("motion", MOTIONS.values(), ids=MOTIONS.keys())
def test_the_law_holds_in_float32_to_1e_5_of_a_model_at_its_start(batch, motion):
    torch.manual_seed(0)
    model = SE2Transformer(CONFIG).float().eval().requires_grad_(False)
    torch.nn.init.normal_(model.directional.to_tokens.weight, std=0.02)

    def cell_repr(batch):
        return model(replace(batch, cell_embeddings=batch.cell_embeddings.float(), coords_um=batch.coords_um.float())).cell_repr

    torch.testing.assert_close(cell_repr(moved_by(motion, batch))[~batch.is_padding], cell_repr(batch)[~batch.is_padding], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "linear",
    [np.eye(2), turned(np.eye(2), 37.0).T, turned(np.eye(2), 90.0).T, np.diag([-1.0, 1.0]), turned(np.eye(2), 25.0).T @ np.diag([1.0, -1.0])],
    ids=["shift", "rotation", "quarter turn", "reflection", "rotation and reflection"],
)
def test_displacements_turn_and_mirror_with_the_tissue_and_do_not_shift(model, head, batch, linear):
    out, moved = model(batch), model(moved_by(lambda coords: coords @ linear.T + 100.0, batch))
    expected = head(out.cell_repr, out.directions) @ torch.from_numpy(linear).T
    assert expected[batch.is_cell].abs().max() > 1e-2
    torch.testing.assert_close(head(moved.cell_repr, moved.directions)[batch.is_cell], expected[batch.is_cell], atol=1e-9, rtol=0)


@pytest.mark.parametrize("seed", range(2))
def test_permuting_cells_permutes_representations_and_displacements(model, head, batch, seed):
    order = torch.randperm(batch.is_padding.shape[1], generator=torch.Generator().manual_seed(seed))
    out, permuted = model(batch), model(only(batch, lambda values: values[:, order]))
    is_there = ~batch.is_padding[:, order]
    torch.testing.assert_close(permuted.cell_repr[is_there], out.cell_repr[:, order][is_there], atol=1e-9, rtol=0)
    expected = head(out.cell_repr, out.directions)[:, order]
    torch.testing.assert_close(head(permuted.cell_repr, permuted.directions)[is_there], expected[is_there], atol=1e-9, rtol=0)


@pytest.mark.parametrize("b", range(len(SIZES)))
def test_padding_and_batching_change_nothing(model, head, batch, b):
    n = SIZES[b] + 3
    out, alone = model(batch), model(only(batch, lambda values: values[b : b + 1, :n]))
    torch.testing.assert_close(alone.cell_repr, out.cell_repr[b : b + 1, :n], atol=1e-9, rtol=0)
    expected = head(out.cell_repr, out.directions)[b : b + 1, :n]
    torch.testing.assert_close(head(alone.cell_repr, alone.directions), expected, atol=1e-9, rtol=0)


def test_the_input_of_a_masked_cell_cannot_leak(model, head, batch):
    noise = 100 * torch.randn(batch.cell_embeddings.shape, generator=torch.Generator().manual_seed(0))
    out, other = model(batch), model(replace(batch, cell_embeddings=torch.where(batch.is_masked[..., None], noise, batch.cell_embeddings)))
    assert torch.equal(out.cell_repr, other.cell_repr)
    assert torch.equal(head(out.cell_repr, out.directions), head(other.cell_repr, other.directions))


@pytest.mark.parametrize("seed", range(4))
def test_targets_lead_moved_cells_and_no_others_back_to_their_true_places(seed):
    coords, embeddings, of_cell = random_cells(seed, 50, 0)
    record = record_of(coords, embeddings, of_cell, n_virtual=0)
    one = mask_sub_slice(record, SE2StageConfig(), n_neighbors=6, rng=np.random.default_rng(seed))
    spacing = np.linalg.norm(one.seen[COORDS_UM][one.moved] - record[COORDS_UM][one.moved]) / np.linalg.norm(one.displacements)
    assert 8 < spacing < 16  # cells lie 10 um apart
    np.testing.assert_allclose(one.seen[COORDS_UM][one.moved] + spacing * one.displacements, record[COORDS_UM][one.moved], atol=1e-3)
    is_moved = np.isin(np.arange(50), one.moved)
    np.testing.assert_array_equal((one.seen[COORDS_UM] != record[COORDS_UM]).any(axis=1), is_moved)


def test_relative_directions_of_neighbors_are_read(model):
    """Four neighbours at the same distance, two of each kind: kinds that lie opposite to themselves, or side by side, are two things."""
    embeddings = np.zeros((5, 256), np.float32)
    embeddings[np.arange(5), [0, 1, 1, 2, 2]] = 1.0

    def features(degrees):
        angles = np.deg2rad(degrees)
        places = np.concatenate([[[0.0, 0.0]], 10.0 * np.stack([np.cos(angles), np.sin(angles)], axis=1)])
        one = in_float64(collate([record_of(places, embeddings, np.zeros(5, int), n_virtual=0)]))
        cells = model.embedding_layer(one.cell_embeddings * 16.0)
        return model.directional(cells, one, find_pairs(one, n_neighbors=1))[0][0, 0]  # of the cell in the middle

    opposite, beside = features([0.0, 180.0, 90.0, 270.0]), features([0.0, 90.0, 180.0, 270.0])
    assert (opposite - beside).abs().max() > 1e-3


def test_cells_hardly_apart_have_hardly_a_direction():
    offsets = torch.tensor([[0.0, 0.0, 0.0], [1e-3, 0.0, 0.0], [10.0, 0.0, 0.0]])
    edges: Edges = edges_between(torch.arange(3), torch.arange(3), offsets, length_um=20.0, n_radial=8)
    strength = [edges.harmonics[:, where].norm(dim=1) for where in HARMONICS.slices()]
    torch.testing.assert_close(strength[0], torch.ones(3))
    assert strength[1][0] == strength[2][0] == 0
    assert 0 < strength[1][1] < 0.02
    assert strength[1][2] == pytest.approx(3**0.5, rel=1e-3)
    assert edges.radial.isfinite().all()


@pytest.mark.parametrize("n_cells", [1, 2, 7])
def test_one_cell_and_cells_in_one_point_give_numbers_and_gradients(n_cells):
    torch.manual_seed(0)
    model, head = SE2Transformer(CONFIG).float(), DisplacementHead(**SHAPE).float()
    torch.nn.init.normal_(model.directional.to_tokens.weight)
    record = random_record(0, n_cells) | {COORDS_UM: np.full((n_cells, 2), 5.0, np.float32)}
    out = model(collate([record]))
    displacements = head(out.cell_repr, out.directions)
    assert (displacements == 0).all()  # nothing points anywhere
    (out.cell_repr.square().sum() + displacements.square().sum()).backward()
    gradients = [parameter.grad for parameter in (*model.directional.parameters(), *head.parameters())]
    assert all(grad is not None and grad.isfinite().all() for grad in gradients)
    assert out.cell_repr.isfinite().all()
