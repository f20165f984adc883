"""Labelled slices from a known world: regions that the cells, their neighbourhood or only the whole tissue can tell apart.

Four signals, each with its own switch:

- **gene**: every region has its own mix of cell types, each with its own expression programme;
- **neighborhood**: small niches pair cell types, and every region has its own pairing; a type is as frequent in one
  region as in another, only its company differs;
- **tissue**: a landmark population lies along one end of the tissue, and regions are bands at growing distance from it;
  inside a band neither cells nor neighbourhoods say which one it is;
- **direction** (off by default, instead of gene and neighborhood): in every other region cells of a type lie in fibres along one axis,
  drawn anew for every slice; in the regions between they mix alike in all directions. How often two cells at a distance are
  of these or those types is the same in all regions, so only directions relative to one another tell.

Turned off, a signal is absent and not merely weak: types are equally frequent, arranged independently, the landmark missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator
from pydantic import Field, model_validator
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from corpus.gene_ids import load_gene_tables
from corpus.slice import FloatArray, IntArray, Species, StrArray
from stofm.config import FrozenModel

if TYPE_CHECKING:
    from anndata import AnnData

LANDMARK = "landmark"
LANDMARK_SHARE = 0.15  # of the tissue's length
NICHE_CELLS = 12  # cells that share a niche
SPACING_UM = 10.0
FIBRE_UM = (60.0, 10.0)  # how far cells of a kind hold together along a fibre, and across it


class SimulationConfig(FrozenModel):
    """A world of slices; programmes and mixes belong to the world, cells and panels to the slice."""

    n_slices: int = Field(4, ge=1)
    n_cells: int = Field(2000, ge=10)
    panel_sizes: list[int] = Field([120, 300], min_length=1, description="Genes measured; slices take them in turn.")
    species: list[Species] = Field(["human", "mouse"], min_length=1, description="Whose gene ids; slices take them in turn.")
    n_regions: int = Field(3, ge=1)
    n_types: int = Field(6, ge=2, description="Cell types beside the landmark; even.")
    gene_signal: bool = True
    neighborhood_signal: bool = True
    tissue_signal: bool = True
    direction_signal: bool = False
    depth: float = Field(150.0, gt=0, description="Mean molecules of a cell before dropout.")
    dispersion: float = Field(2.0, gt=0, description="Size of the negative binomial; small is noisy.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Share of counts lost to dropout events.")
    seed: int = 0

    @model_validator(mode="after")
    def _has_pairings(self) -> SimulationConfig:
        if self.n_types % 2 or self.n_regions > self.n_types - 1:
            raise ValueError(f"{self.n_types} types give {self.n_types - 1} pairings, for an even number; expected at least {self.n_regions}.")
        if self.direction_signal and (self.gene_signal or self.neighborhood_signal):
            raise ValueError("direction_signal says alone where the types lie; expected it without gene_signal and neighborhood_signal.")
        if self.direction_signal and self.n_types.bit_count() > 1:
            raise ValueError(f"direction_signal makes types of binary digits; found {self.n_types} types; expected a power of 2.")
        return self


def simulate_slices(config: SimulationConfig) -> list[AnnData]:
    """Simulate all slices of a world; the same settings give the same slices."""
    return [simulate_slice(config, number) for number in range(config.n_slices)]


def simulate_slice(config: SimulationConfig, number: int) -> AnnData:
    """Simulate slice `number` of a world.

    Returns
    -------
    AnnData
        X (n_cells, n_genes) CSR raw counts; Ensembl ids of the slice's species as var names; ``obsm["spatial"]``
        micrometres; ``obs["region"]`` and ``obs["cell_type"]``; the unit and species declared in ``uns``.
    """
    import anndata
    import pandas as pd

    species = config.species[number % len(config.species)]
    n_genes = config.panel_sizes[number % len(config.panel_sizes)]
    world = np.random.default_rng([config.seed, 0])
    mixes, programmes = _region_mixes(config, world), _programmes(config, world)  # (R, types), (types + 1, pool)
    rng = np.random.default_rng([config.seed, 1, number])

    places, depth_axis = _tissue(config.n_cells, rng)
    regions = _bands(places, depth_axis, config.n_regions, rng)
    types = _cell_types(places, regions, mixes, config, rng)
    if config.tissue_signal:
        types[depth_axis < LANDMARK_SHARE] = config.n_types
    panel = np.sort(rng.choice(programmes.shape[1], n_genes, replace=False))
    names = np.array([f"type_{number}" for number in range(config.n_types)] + [LANDMARK])
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return anndata.AnnData(
        X=_counts(programmes[types][:, panel], config, rng),
        obs=pd.DataFrame(
            {"region": pd.Categorical([f"region_{region}" for region in regions]), "cell_type": pd.Categorical(names[types])},
            index=[f"cell_{row}" for row in range(config.n_cells)],
        ),
        var=pd.DataFrame(index=_gene_pool(species, programmes.shape[1])[panel].astype(object)),
        obsm={"spatial": places @ turn.T},
        uns={"provenance": {"technology": "simulated", "species": species, "tissue": "simulated", "unit": "um"}},
    )


def _gene_pool(species: Species, n_genes: int) -> StrArray:
    """Ensembl ids of the first one-to-one orthologs, so that both species share every gene of the pool."""
    human_of_mouse = load_gene_tables().human_of_mouse
    n_mouse: dict[str, int] = {}
    for human in human_of_mouse.values():
        n_mouse[human] = n_mouse.get(human, 0) + 1
    pairs = sorted((human, mouse) for mouse, human in human_of_mouse.items() if n_mouse[human] == 1)[:n_genes]
    return np.array([pair[0 if species == "human" else 1] for pair in pairs])


def _region_mixes(config: SimulationConfig, rng: Generator) -> FloatArray:
    """Share of each cell type in each region, (R, types)."""
    mixes = rng.dirichlet(np.full(config.n_types, 0.5), config.n_regions) + 0.02
    uniform = np.ones_like(mixes)
    shares = mixes if config.gene_signal else uniform
    return shares / shares.sum(axis=1, keepdims=True)


def _programmes(config: SimulationConfig, rng: Generator) -> FloatArray:
    """Expected share of each gene of the pool in each cell type, (types + 1, pool); the last type is the landmark."""
    n_pool = max(config.panel_sizes)
    baseline = rng.lognormal(0.0, 1.0, n_pool)
    is_marker = rng.random((config.n_types + 1, n_pool)) < 0.1
    return baseline * np.where(is_marker, np.exp(rng.normal(2.0, 0.3, is_marker.shape)), 1.0)


def _tissue(n_cells: int, rng: Generator) -> tuple[FloatArray, FloatArray]:
    """Cells on a jittered grid inside an ellipse: places (n, 2) in micrometres, and depth along the long axis in [0, 1]."""
    half_width = np.sqrt(n_cells / (1.5 * np.pi)) * SPACING_UM
    half_length = 1.5 * half_width
    side = np.arange(-half_length - SPACING_UM, half_length + SPACING_UM, SPACING_UM)
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    grid += rng.normal(0, 0.25 * SPACING_UM, grid.shape)
    inside = np.argsort((grid[:, 0] / half_length) ** 2 + (grid[:, 1] / half_width) ** 2, kind="stable")[:n_cells]
    places = grid[rng.permutation(inside)]
    return places, (places[:, 0] - places[:, 0].min()) / np.ptp(places[:, 0])


def _bands(places: FloatArray, depth_axis: FloatArray, n_regions: int, rng: Generator) -> IntArray:
    """Region of each cell, (n,): bands across the depth axis with wavy borders."""
    wave = 0.03 * np.sin(places[:, 1] / np.abs(places[:, 1]).max() * np.pi + rng.uniform(0, 2 * np.pi))
    return np.clip(((depth_axis + wave) * n_regions).astype(np.int64), 0, n_regions - 1)


def _cell_types(places: FloatArray, regions: IntArray, mixes: FloatArray, config: SimulationConfig, rng: Generator) -> IntArray:
    """Cell type of each cell, (n,)."""
    if config.direction_signal:
        return _fibre_types(places, regions, config.n_types, rng)
    if not config.neighborhood_signal:
        return _draw(mixes[regions], rng)
    centres = places[rng.choice(len(places), max(1, len(places) // NICHE_CELLS), replace=False)]
    niche = cKDTree(centres).query(places)[1]
    partner = np.array([_pairing(region, config.n_types) for region in range(config.n_regions)])  # (R, types)
    host = _draw(mixes[regions[cKDTree(places).query(centres)[1]]], rng)[niche]  # one type of the niche's pair
    pair = np.stack([host, partner[regions, host]], axis=1)  # (n, 2)
    share = np.take_along_axis(mixes[regions], pair, axis=1)
    return pair[np.arange(len(places)), _draw(share / share.sum(axis=1, keepdims=True), rng)]


def _fibre_types(places: FloatArray, regions: IntArray, n_types: int, rng: Generator) -> IntArray:
    """Type of each cell, (n,), its binary digits the signs of as many random fields.

    The fields are long along one axis in regions 0, 2, ... and alike in all directions in the others. Two signs agree with probability
    1/2 + arcsin(c) / pi, c the covariance of the field; that of the second kind is such that its agreement at any distance is
    the mean over directions of that of the first.
    """
    angle = rng.uniform(0, np.pi)
    offset = places[:, None] - places[None]  # (n, n, 2)
    along, across = offset @ [np.cos(angle), np.sin(angle)], offset @ [-np.sin(angle), np.cos(angle)]
    distance = np.hypot(along, across)
    grid, directions = np.linspace(0, distance.max(), 2000)[:, None], np.linspace(0, np.pi / 2, 200)
    agreement = np.arcsin(_fibre_covariance(grid * np.cos(directions), grid * np.sin(directions))).mean(axis=1)
    digits = np.zeros((len(places), n_types.bit_length() - 1), dtype=np.int64)
    for number, covariance in enumerate((_fibre_covariance(along, across), np.sin(np.interp(distance, grid[:, 0], agreement)))):
        np.fill_diagonal(covariance, 1.0)
        fields = np.linalg.cholesky(covariance) @ rng.standard_normal(digits.shape)  # (n, digits)
        digits = np.where((regions % 2 == number)[:, None], fields > 0, digits)
    return digits @ 2 ** np.arange(digits.shape[1])


def _fibre_covariance(along: FloatArray, across: FloatArray) -> FloatArray:
    """Covariance of two cells that lie this far apart along and across the fibres; a hundredth is noise of each cell."""
    return 0.99 * np.exp(-0.5 * ((along / FIBRE_UM[0]) ** 2 + (across / FIBRE_UM[1]) ** 2))


def _pairing(region: int, n_types: int) -> IntArray:
    """Partner of each type in a region, (types,): the rounds of a tournament, so no pair occurs in two regions."""
    others = n_types - 1
    partner = np.empty(n_types, dtype=np.int64)
    for step in range(n_types // 2):
        one, other = (region + step) % others, (region - step) % others
        one, other = (others, other) if step == 0 else (one, other)
        partner[one], partner[other] = other, one
    return partner


def _draw(shares: FloatArray, rng: Generator) -> IntArray:
    """Draw one index per row with the row's probabilities."""
    return (rng.random((len(shares), 1)) > np.cumsum(shares, axis=1)[:, :-1]).sum(axis=1)


def _counts(programme: FloatArray, config: SimulationConfig, rng: Generator) -> csr_matrix:
    """Negative-binomial counts of cells with these programmes, depth varying from cell to cell, then dropout."""
    depth = config.depth * rng.lognormal(-0.08, 0.4, (len(programme), 1))
    mean = depth * programme / programme.sum(axis=1, keepdims=True)
    counts = rng.poisson(rng.gamma(config.dispersion, mean / config.dispersion))
    counts[rng.random(counts.shape) < config.dropout] = 0
    return csr_matrix(counts.astype(np.float32))
