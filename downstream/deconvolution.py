"""Deconvolution: shares of reference cell types in spots, learned from pseudo-spots, on the simplex, with intervals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy.special import softmax
from torch import nn

from corpus.slice import FloatArray, StrArray
from downstream.profiles import LEAST_GENES, Profiles, log_expression
from downstream.pseudo_spots import PseudoSpotConfig, PseudoSpots, draw_pseudo_spots, split_cells, types_of
from stofm.config import FrozenModel
from stofm.durable import claim_folder, replacing, require_folder
from stofm.errors import DataError, FormatError
from stofm.fields import EMBEDDING_DIM

DECONVOLVER_KIND, DECONVOLVER_FORMAT, DECONVOLVER_FILE = "stofm-deconvolver/1", "stofm-deconvolution/1", "deconvolver.safetensors"
N_COMPONENTS = 50  # of log expression, beside the embedding
LEAST_SHARE_OF_GENES = 0.9  # of those that the head was fitted on, which spots must measure
N_PASSES, BATCH_SPOTS, LEARNING_RATE, DROPOUT = 60, 256, 1e-3, 0.1

EmbedSpots = Callable[[Profiles], FloatArray]  # -> (n, 256), NaN where there is nothing to read


class DeconvolveConfig(FrozenModel):
    """How a deconvolver is fitted."""

    features: Literal["both", "embedding", "counts"] = Field("both", description="What it reads of a spot: embedding, log counts, or both.")
    coverage: float = Field(0.9, gt=0, lt=1, description="Share of pseudo-spots whose true share lies within the interval, type by type.")
    hidden: int = Field(128, ge=1, description="Width of the hidden layer.")
    pseudo_spots: PseudoSpotConfig = Field(default_factory=PseudoSpotConfig)
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Proportions:
    """Shares of types, (n, C) float32: each row of `mean` on the simplex, within `low` and `high`; NaN where a spot has no counts."""

    types: StrArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, eq=False)
class Deconvolver:
    """A fitted head.

    Attributes
    ----------
    types : (C,) str
    gene_ids : (G,) str
        Human genes of the pseudo-spots; only these are read of a spot.
    arrays : dict of float32
        Principal axes of log expression (`axes`, `middle`), scale of the features (`mean`, `spread`), weights, and the half width of the interval of
        each type in units of sqrt(p (1 - p)) (`width`).
    """

    config: DeconvolveConfig
    types: StrArray
    gene_ids: StrArray
    weights_sha256: str
    arrays: dict[str, FloatArray]

    def predict(self, spots: Profiles, embed: EmbedSpots) -> Proportions:
        """Predict the shares of types in spots; `DataError` if they measure too few of the head's genes."""
        n_found = len(np.intersect1d(spots.gene_ids, self.gene_ids))
        if n_found < LEAST_SHARE_OF_GENES * len(self.gene_ids):
            raise DataError(f"spots {spots.name!r}: found {n_found} of the {len(self.gene_ids)} genes of the head; expected "
                            f"{LEAST_SHARE_OF_GENES:.0%}. Fit the head with --panel on these spots.")  # fmt: skip
        spots = spots.of_genes(self.gene_ids)
        x = _features(spots, embed, self.config.features, self.arrays)
        x = (x - self.arrays["mean"]) / self.arrays["spread"]
        hidden = np.maximum(x @ self.arrays["weights_0"] + self.arrays["bias_0"], 0)
        shares = softmax(hidden @ self.arrays["weights_1"] + self.arrays["bias_1"], axis=1).astype(np.float32)
        half = self.arrays["width"] * _spread_of_share(shares)
        return Proportions(self.types, shares, np.clip(shares - half, 0, 1), np.clip(shares + half, 0, 1))


def fit_deconvolver(reference: Profiles, config: DeconvolveConfig, *, embed: EmbedSpots, weights_sha256: str) -> Deconvolver:
    """Fit a head to pseudo-spots of a labelled reference; cells without a label and types of fewer than 5 cells are left out.

    Intervals are conformal: on pseudo-spots of held-out cells, the stated share of true shares lies within them, whatever the head.
    How well that carries over to real spots depends on how much pseudo-spots resemble them.

    Raises
    ------
    DataError
        If fewer than two types have enough cells, or the reference measures too few genes.
    """
    types = types_of(reference)
    if len(reference.gene_ids) < LEAST_GENES:
        raise DataError(f"reference {reference.name!r}: found {len(reference.gene_ids)} genes; expected at least {LEAST_GENES}. Use a larger panel.")
    rng = np.random.default_rng(config.seed)
    learnt, held_out = split_cells(reference, types, config.pseudo_spots.held_out, rng)
    training = draw_pseudo_spots(learnt, types, config.pseudo_spots.n_spots, config.pseudo_spots, rng)
    n_held_out = max(100, round(config.pseudo_spots.held_out * config.pseudo_spots.n_spots))
    calibration = draw_pseudo_spots(held_out, types, n_held_out, config.pseudo_spots, rng)
    arrays = {"axes": np.zeros((len(reference.gene_ids), 0), np.float32), "middle": np.zeros(len(reference.gene_ids), np.float32)}
    if config.features != "embedding":
        arrays = _principal_axes(training.profiles)
    x = _features(training.profiles, embed, config.features, arrays)
    is_known = np.isfinite(x).all(axis=1)
    x, y = x[is_known], training.proportions[is_known]
    arrays |= {"mean": x.mean(axis=0), "spread": np.maximum(x.std(axis=0), 1e-6)}
    arrays |= _fit_shares((x - arrays["mean"]) / arrays["spread"], y, config)
    arrays["width"] = np.zeros(len(types), np.float32)
    head = Deconvolver(config, types, reference.gene_ids, weights_sha256, arrays)
    return Deconvolver(config, types, reference.gene_ids, weights_sha256, arrays | {"width": _widths(head, calibration, embed)})


def _features(spots: Profiles, embed: EmbedSpots, kind: str, arrays: dict[str, FloatArray]) -> FloatArray:
    """(n, F) float32; NaN where a spot has no counts."""
    parts = [embed(spots)] if kind != "counts" else []
    if kind != "embedding":
        scores = log_expression(spots.counts) @ arrays["axes"] - arrays["middle"] @ arrays["axes"]
        scores[np.diff(spots.counts.indptr) == 0] = np.nan
        parts.append(scores.astype(np.float32))
    return np.hstack(parts)


def _principal_axes(spots: Profiles) -> dict[str, FloatArray]:
    """Axes, (G, <= 50), and middle, (G,), of log expression; of sparse counts, so that panels of any width fit into memory."""
    from sklearn.decomposition import PCA

    logs = log_expression(spots.counts)
    fitted = PCA(min(N_COMPONENTS, min(logs.shape) - 1), svd_solver="arpack", random_state=0).fit(logs)
    return {"axes": np.ascontiguousarray(fitted.components_.T, np.float32), "middle": fitted.mean_.astype(np.float32)}


def _fit_shares(x: FloatArray, y: FloatArray, config: DeconvolveConfig) -> dict[str, FloatArray]:
    """One hidden layer and a softmax; cross-entropy against true shares is least where the output is their expectation."""
    generator = torch.Generator().manual_seed(config.seed)
    layers = nn.ModuleList([nn.Linear(x.shape[1], config.hidden), nn.Linear(config.hidden, y.shape[1])])
    for layer in layers:
        for weights in layer.parameters():
            nn.init.uniform_(weights, -(layer.in_features**-0.5), layer.in_features**-0.5, generator=generator)  # type: ignore[arg-type, operator]
    steps = torch.optim.AdamW(layers.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, N_PASSES)
    features, shares = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y.astype(np.float32))
    for _ in range(N_PASSES):
        for rows in torch.randperm(len(features), generator=generator).split(BATCH_SPOTS):
            hidden = torch.relu(layers[0](features[rows]))
            hidden = hidden * (torch.rand(hidden.shape, generator=generator) >= DROPOUT) / (1 - DROPOUT)
            loss = nn.functional.cross_entropy(layers[1](hidden), shares[rows])
            steps.zero_grad()
            loss.backward()
            steps.step()
        schedule.step()
    return {f"{what}_{number}": value for number, layer in enumerate(layers)
            for what, value in (("weights", layer.weight.detach().numpy().T.copy()), ("bias", layer.bias.detach().numpy().copy()))}  # type: ignore[operator]  # fmt: skip


def _widths(head: Deconvolver, calibration: PseudoSpots, embed: EmbedSpots) -> FloatArray:
    """Half width of the interval of each type, (C,) float32: the quantile of scaled errors of split conformal prediction (Lei et al. 2018)."""
    predicted = head.predict(calibration.profiles, embed).mean
    is_known = np.isfinite(predicted).all(axis=1)
    errors = np.abs(calibration.proportions - predicted)[is_known] / _spread_of_share(predicted[is_known])
    level = min(1.0, np.ceil((len(errors) + 1) * head.config.coverage) / len(errors))
    return np.quantile(errors, level, axis=0, method="higher").astype(np.float32)


def _spread_of_share(shares: FloatArray) -> FloatArray:
    """sqrt(p (1 - p)), never 0: how far a share of few cells strays."""
    return np.sqrt(np.maximum(shares * (1 - shares), 1e-4))


def no_embedding(spots: Profiles) -> FloatArray:
    """Stand in for a model where only counts are read."""
    return np.zeros((spots.counts.shape[0], EMBEDDING_DIM), np.float32)


def save_deconvolver(folder: Path, head: Deconvolver) -> None:
    """Write a head to a folder of its own."""
    claim_folder(folder, DECONVOLVER_KIND)
    header = {"format": DECONVOLVER_FORMAT, "config": head.config.model_dump_json(), "types": json.dumps(head.types.tolist()),
              "genes": json.dumps(head.gene_ids.tolist()), "weights_sha256": head.weights_sha256}  # fmt: skip
    with replacing(folder / DECONVOLVER_FILE) as aside:
        save_file({name: np.ascontiguousarray(values, np.float32) for name, values in head.arrays.items()}, aside, metadata=header)


def load_deconvolver(folder: Path) -> Deconvolver:
    """Read what `save_deconvolver` wrote; `FormatError` if it is damaged."""
    require_folder(folder, DECONVOLVER_KIND, made_by="stofm deconvolve fit")
    try:
        with safe_open(folder / DECONVOLVER_FILE, "np") as file:
            header, arrays = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise FormatError(f"head {folder}: {error}; expected a file that `stofm deconvolve fit` wrote. Fit the head again.") from error
    if header.get("format") != DECONVOLVER_FORMAT:
        raise FormatError(f"head {folder}: found format {header.get('format')!r}; expected {DECONVOLVER_FORMAT!r}. Fit the head again.")
    config = DeconvolveConfig.model_validate_json(header["config"])
    types, genes = np.array(json.loads(header["types"])), np.array(json.loads(header["genes"]))
    return Deconvolver(config, types, genes, header["weights_sha256"], arrays)
