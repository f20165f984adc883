"""Pictures: labels on the tissue, one palette for all panels; loss curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from corpus.slice import FloatArray, StrArray
from stofm.durable import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]  # told apart by colour-blind eyes
MISSING = "#D9D9D9"
PANEL_INCHES, PANELS_PER_ROW = 4.0, 3


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
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    classes = classes or sorted(set(np.concatenate(list(panels.values())).tolist()) - {""})
    colours = dict(zip(classes, _palette(len(classes)), strict=True)) | {"": MISSING}
    width, height = np.maximum(np.ptp(coords_um, axis=0), 1e-9)
    n_columns = min(len(panels), PANELS_PER_ROW)
    n_rows = -(-len(panels) // n_columns)
    tall = PANEL_INCHES * float(np.clip(height / width, 0.3, 2.5))
    figure = Figure(figsize=(PANEL_INCHES * n_columns + 1.6, (tall + 0.5) * n_rows), layout="constrained")
    grid = np.atleast_1d(figure.subplots(n_rows, n_columns)).ravel()
    size = 0.25 * (PANEL_INCHES * 72) ** 2 * float(min(1.0, height / width * 2)) / len(coords_um)  # square points: about half the panel is ink
    for unused in grid[len(panels) :]:
        unused.set_axis_off()
    for axes, (title, labels) in zip(grid, panels.items(), strict=False):
        axes.scatter(coords_um[:, 0], coords_um[:, 1], s=size, c=[colours[label] for label in labels.tolist()], linewidths=0, rasterized=True)
        axes.set(title=title, aspect="equal", xticks=[], yticks=[])
        axes.invert_yaxis()
        for spine in axes.spines.values():
            spine.set_visible(False)
    marks = [Line2D([], [], marker="o", linestyle="", color=colours[name], label=name) for name in classes]
    figure.legend(handles=marks, loc="outside right center", frameon=False, fontsize="small", ncols=1 + len(marks) // 24)
    _save(figure, path)


def plot_losses(lines: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw every objective of a run over its steps, a panel each; `lines` as `pretrain.run_log.read_run_log` gives them."""
    from matplotlib.figure import Figure

    curves: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        for name, value in line["losses"].items():
            curves.setdefault(f"{line['stage']} stage: {name}", []).append((line["step"], value))
    figure = Figure(figsize=(3.2 * max(1, len(curves)), 2.8), layout="constrained")
    for axes, (title, points) in zip(np.atleast_1d(figure.subplots(1, max(1, len(curves)))), curves.items(), strict=False):
        steps, values = np.array(points).T
        axes.plot(steps, values, color=OKABE_ITO[0], linewidth=0.6, alpha=0.5)
        window = max(1, len(values) // 20)
        smooth = np.convolve(values, np.ones(window) / window, mode="valid")
        axes.plot(steps[window - 1 :], smooth, color=OKABE_ITO[5], linewidth=1.5)
        axes.set(title=title, xlabel="step")
        axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path)


def _palette(n_classes: int) -> list[Any]:
    if n_classes <= len(OKABE_ITO):
        return OKABE_ITO[:n_classes]
    from matplotlib import colormaps

    if n_classes <= 20:
        return [colormaps["tab20"](number) for number in range(n_classes)]
    return [colormaps["turbo"](number / (n_classes - 1)) for number in range(n_classes)]


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as aside:
        figure.savefig(aside, format=path.suffix[1:], dpi=150, metadata={"Software": None} if path.suffix == ".png" else None)
