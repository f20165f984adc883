"""Figures for papers: vectors with text as text, one palette over slices."""

from __future__ import annotations

import numpy as np
import pytest

from downstream.diagnostics import composition, confusion, reliability
from downstream.plots import colours_of, plot_calibration, plot_confusion, plot_proportions, plot_tissues, plot_umap

RNG = np.random.default_rng(0)
PLACES = RNG.uniform(0, 100, (60, 2))
LABELS = np.array(["gut", "liver", "brain"])[RNG.integers(0, 3, 60)]
TYPES = np.array(["T cell", "B cell"])[RNG.integers(0, 2, 60)]
CURVE = reliability(LABELS, np.full(60, "gut"), RNG.uniform(0, 1, 60))
FIGURES = {
    "tissues": lambda path: plot_tissues({"one": (PLACES, LABELS), "two": (PLACES * [2, 1], LABELS[::-1])}, path),
    "proportions": lambda path: plot_proportions(composition(LABELS, TYPES), path),
    "umap": lambda path: plot_umap(PLACES, LABELS, path),
    "confusion": lambda path: plot_confusion(confusion(LABELS, LABELS[::-1]), path),
    "calibration": lambda path: plot_calibration({"gut": CURVE.bins}, path),
}
WORDS = {"tissues": ["one", "two", "liver"], "proportions": ["gut", "T cell"], "umap": ["UMAP 1", "brain"], "confusion": ["predicted", "liver"],
         "calibration": ["confidence", "gut"]}  # fmt: skip


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_made_of_vectors_and_its_words_are_text(name, tmp_path):
    path = tmp_path / "figure.svg"
    FIGURES[name](path)
    drawing = path.read_text()
    assert [word for word in WORDS[name] if f">{word}</text>" not in drawing] == []
    assert ("<image" in drawing) == (name == "confusion")  # its bar of colours is a raster


def test_a_pdf_is_one(tmp_path):
    FIGURES["confusion"](tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_a_label_has_one_colour_in_all_slices():
    colours = colours_of(np.array(["b", "a"]), np.array(["c", "a", ""]))
    assert list(colours) == ["a", "b", "c", ""]
    assert len(set(colours.values())) == 4
