"""Palettes that colour-blind eyes tell apart, on white and on a dark page."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from downstream.palettes import label_colours, number_ramp

# Linear RGB seen without one kind of cone: Machado, Oliveira and Fernandes (2009), severity 1.
EYES = {
    "all cones": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}
TO_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]])
JUST_SEEN = 2.3  # distance in Lab that is just noticed


def lab(colours: list[str], eye: np.ndarray) -> np.ndarray:
    """CIE Lab, (n, 3), of colours as an eye sees them."""
    rgb = np.array([to_rgb(colour) for colour in colours])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = (linear @ eye.T).clip(0, 1) @ TO_XYZ.T / TO_XYZ.sum(axis=1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.column_stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])])


@pytest.mark.parametrize("eye", EYES)
@pytest.mark.parametrize("n_classes", [3, 8, 15])
def test_colours_are_told_apart_by_every_eye(n_classes, eye):
    places = lab(label_colours(n_classes), EYES[eye])
    distances = np.linalg.norm(places[:, None] - places[None], axis=-1)[np.triu_indices(n_classes, 1)]
    assert distances.min() > 6 * JUST_SEEN


@pytest.mark.parametrize("n_classes", [3, 8, 15, 40])
def test_no_colour_vanishes_on_a_light_or_a_dark_page(n_classes):
    lightness = lab(label_colours(n_classes), EYES["all cones"])[:, 0]
    assert lightness.max() < 95
    assert lightness.min() > 20


def test_every_class_has_a_colour_of_its_own():
    assert len(set(label_colours(40))) == 40


@pytest.mark.parametrize("eye", EYES)
def test_numbers_grow_lighter_for_every_eye(eye):
    assert (np.diff(lab(number_ramp(), EYES[eye])[:, 0]) > 0).all()
