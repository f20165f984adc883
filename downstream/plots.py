"""Figures: labels on the tissue, one palette for all panels; proportions, UMAP, confusion, calibration; loss curves.

A path that ends in .pdf or .svg gets vectors, with text as text; only points in great number are a raster inside.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from corpus.slice import FloatArray, StrArray
from downstream.palettes import MISSING, OKABE_ITO, label_colours
from stofm.durable import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANEL_INCHES, PANELS_PER_ROW = 4.0, 3
MOST_VECTOR_POINTS = 20_000  # of a panel; more are drawn as a raster inside the vectors
VECTORS: Any = {"svg.fonttype": "none", "pdf.fonttype": 42}  # text stays text, to be edited for a paper


def plot_tissue(coords_um: FloatArray, panels: Mapping[str, StrArray], path: Path, *, classes: Sequence[str] | None = None) -> None:
    """Draw the cells of a slice once per panel, coloured by label; "" is grey.

    Parameters
    ----------
    coords_um : (n_cells, 2) float, micrometres
    panels : {title: (n_cells,) str}
    path : Path
        PNG, PDF or SVG, by its suffix.
    classes : list of str
        All labels, in the order of the palette, so that several pictures share it; default: those that occur.
    """
    plot_tissues({title: (coords_um, labels) for title, labels in panels.items()}, path, classes=classes)


def plot_tissues(panels: Mapping[str, tuple[FloatArray, StrArray]], path: Path, *, classes: Sequence[str] | None = None) -> None:
    """Draw slices side by side, {title: (coordinates (n, 2) in micrometres, labels (n,) str)}; a label has one colour in all of them.

    `classes` as in `plot_tissue`.
    """
    from matplotlib.figure import Figure

    colours = colours_of(*(labels for _, labels in panels.values())) if classes is None else _colours(classes)
    sides = [np.maximum(np.ptp(coords_um, axis=0), 1e-9) for coords_um, _ in panels.values()]
    steepness = max(height / width for width, height in sides)
    n_columns = min(len(panels), PANELS_PER_ROW)
    n_rows = -(-len(panels) // n_columns)
    tall = PANEL_INCHES * float(np.clip(steepness, 0.3, 2.5))
    figure = Figure(figsize=(PANEL_INCHES * n_columns + 1.6, (tall + 0.5) * n_rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(n_rows, n_columns)).ravel()
    for unused in grid[len(panels) :]:
        unused.set_axis_off()
    for axes, (title, (coords_um, labels)), (width, height) in zip(grid, panels.items(), sides, strict=False):
        size = 0.25 * (PANEL_INCHES * 72) ** 2 * float(min(1.0, height / width * 2)) / len(coords_um)  # square points: about half the panel is ink
        _points(axes, coords_um, labels, colours, size=size)
        axes.set(title=title, aspect="equal")
        axes.invert_yaxis()
    _label_legend(figure, colours)
    _save(figure, path)


def plot_proportions(shares: pd.DataFrame, path: Path) -> None:
    """Draw rows of shares that add up to 1 (`downstream.diagnostics.composition`) as stacked bars."""
    from matplotlib.figure import Figure

    colours = dict(zip(map(str, shares.columns), label_colours(shares.shape[1]), strict=True))
    figure = Figure(figsize=(6.4, 0.8 + 0.32 * len(shares)), layout="constrained")
    axes, left = figure.subplots(), np.zeros(len(shares))
    for name, values in shares.items():
        axes.barh(shares.index.astype(str), values, left=left, color=colours[str(name)], edgecolor="white", linewidth=0.4, height=0.8)
        left += values.to_numpy()
    axes.set(xlim=(0, 1), xlabel="share of cells")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    _label_legend(figure, colours)
    _save(figure, path)


def plot_umap(places: FloatArray, labels: StrArray, path: Path) -> None:
    """Draw places in the plane, (n, 2) (`downstream.diagnostics.umap_places`), coloured by label, (n,) str."""
    _save(_umap(places, labels, colours_of(labels)), path)


def umap_picture(places: FloatArray, labels: StrArray, *, colours: Mapping[str, str]) -> bytes:
    """Return the same as a PNG, with these colours."""
    return png_of(_umap(places, labels, {**colours, "": MISSING}))


def plot_confusion(table: pd.DataFrame, path: Path) -> None:
    """Draw cells by true (rows) and predicted class (`downstream.diagnostics.confusion`), shaded by share of the row."""
    from matplotlib.figure import Figure

    shares = table.div(table.sum(axis=1), axis=0)
    figure = Figure(figsize=(2.4 + 0.5 * table.shape[1], 1.6 + 0.42 * len(table)), layout="constrained")
    axes = figure.subplots()
    mesh = axes.pcolormesh(shares.to_numpy(), cmap="cividis", vmin=0, vmax=1, edgecolors="white", linewidth=0.4)
    for (row, column), share in np.ndenumerate(shares.to_numpy()):
        axes.text(column + 0.5, row + 0.5, f"{share:.2f}", ha="center", va="center", fontsize="x-small", color="black" if share > 0.5 else "white")
    axes.set(xlabel="predicted", ylabel="true", xticks=np.arange(table.shape[1]) + 0.5, yticks=np.arange(len(table)) + 0.5)
    axes.set_xticklabels(table.columns.astype(str), rotation=60, ha="right")
    axes.set_yticklabels(table.index.astype(str))
    axes.invert_yaxis()
    figure.colorbar(mesh, label="share of the true class")
    _save(figure, path)


def plot_calibration(curves: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Draw accuracy over confidence of one or several sets of predictions (`downstream.diagnostics.reliability`) beside where they are equal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1)
    for number, (name, bins) in enumerate(curves.items()):
        axes.plot(bins["confidence"], bins["accuracy"], marker="os^Dv"[number % 5], color=OKABE_ITO[number % 7], label=name)
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="confidence", ylabel="share that is right", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    _save(figure, path)


def plot_losses(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw every objective of a run over its steps, a panel each; `lines` as `pretrain.run_log.read_run_log` gives them."""
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line["losses"].items():
            curves.setdefault(f"{line['stage']} stage: {name}", []).append((line["step"], value))
    n = max(1, len(curves))
    figure = Figure(figsize=(3.2 * n, 2.8))
    # To lay out many panels takes longer than to draw them.
    margins = {"left": 0.2 / n, "right": 1 - 0.04 / n, "bottom": 0.17, "top": 0.89, "wspace": 0.25}
    for axes, (title, points) in zip(np.atleast_1d(figure.subplots(1, n, gridspec_kw=margins)), curves.items(), strict=False):
        steps, values = np.array(points).T
        axes.plot(steps, values, color=OKABE_ITO[0], linewidth=0.6, alpha=0.5)
        window = max(1, len(values) // 20)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=OKABE_ITO[5], linewidth=1.5)
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def colours_of(*labels: StrArray) -> dict[str, str]:
    """Return a colour for every label in any of `labels`, each (n,) str, in their order; "" is grey."""
    return _colours(sorted(set(np.concatenate([np.unique(one) for one in labels]).tolist()) - {""}))


def _colours(classes: Sequence[str]) -> dict[str, str]:
    return dict(zip(classes, label_colours(len(classes)), strict=True)) | {"": MISSING}


def tissue_thumbnail(coords_um: FloatArray, labels: StrArray | None, *, pixels: int = 180) -> bytes:
    """Return a small PNG of a slice, (n, 2) micrometres; without labels all cells have one colour."""
    from matplotlib.figure import Figure

    labels = np.full(len(coords_um), "cell") if labels is None else labels
    rows = np.random.default_rng(0).permutation(len(coords_um))[:MOST_VECTOR_POINTS]
    figure = Figure(figsize=(2, 2))
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    _points(axes, coords_um[rows], labels[rows], colours_of(labels), size=max(0.3, 6000 / len(rows)))
    axes.set(aspect="equal")
    axes.invert_yaxis()
    return png_of(figure, dpi=pixels // 2)


def png_of(figure: Figure, *, dpi: int = 110) -> bytes:
    """Return a figure as the bytes of a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _umap(places: FloatArray, labels: StrArray, colours: Mapping[str, str]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 3.8), layout="constrained")
    axes = figure.subplots()
    _points(axes, places, labels, colours, size=float(np.clip(12_000 / len(places), 1, 12)))
    axes.set(xlabel="UMAP 1", ylabel="UMAP 2")
    _label_legend(figure, {name: colour for name, colour in colours.items() if (labels == name).any()})
    return figure


def _points(axes: Axes, places: FloatArray, labels: StrArray, colours: Mapping[str, str], *, size: float) -> None:
    shades = [colours[label] for label in labels.tolist()]
    axes.scatter(places[:, 0], places[:, 1], s=size, c=shades, linewidths=0, rasterized=len(places) > MOST_VECTOR_POINTS)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _label_legend(figure: Figure, colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    marks = [Line2D([], [], marker="o", linestyle="", color=colour, label=name) for name, colour in colours.items() if name]
    figure.legend(handles=marks, loc="outside right center", frameon=False, fontsize="small", ncols=1 + len(marks) // 24)


def _save(figure: Figure, path: Path) -> None:
    from matplotlib import rc_context

    with replacing(path) as aside, rc_context(VECTORS):
        figure.savefig(aside, format=path.suffix[1:], dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)
