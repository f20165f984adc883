"""Colours that colour-blind eyes tell apart, by how many are needed."""

from __future__ import annotations

OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
# Okabe and Ito's colours but black, which a dark page swallows; then one by one the colour that is farthest in CIE Lab from all before it, for
# the eye (all cones, protanopia, deuteranopia, tritanopia) that tells them apart least; lightness 24 to 93, to be seen on white and on black.
FIFTEEN = [*OKABE_ITO[:7], "#8B00FF", "#5D2E00", "#B9E8A2", "#464646", "#462EB9", "#00FFE8", "#8B74FF", "#B9A25D"]
MISSING = "#D9D9D9"


def label_colours(n_classes: int) -> list[str]:
    """Return a colour (#RRGGBB) for each of `n_classes`, the same on a light and on a dark page.

    Up to 15 are told apart whatever the eye's cones; more are steps of one scale, for which names must be shown too.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    if n_classes <= len(FIFTEEN):
        return FIFTEEN[:n_classes]
    scale = colormaps["turbo"]
    return [to_hex(scale(0.05 + 0.9 * number / (n_classes - 1))) for number in range(n_classes)]


def number_ramp(n_steps: int = 64) -> list[str]:
    """Return the colours (#RRGGBB) of numbers from low to high: cividis, made for colour-blind eyes."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["cividis"](step / (n_steps - 1))) for step in range(n_steps)]
