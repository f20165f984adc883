"""Colours that colour-blind eyes tell apart, by how many are needed."""

from __future__ import annotations

OKABE_ITO = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000"]
MISSING = "#D9D9D9"
# 15 colours for protanopia, deuteranopia and tritanopia (M. Krzywinski, mk.bcgsc.ca/colorblind).
FIFTEEN = ["#68023F", "#008169", "#EF0096", "#00DCB5", "#FFCFE2", "#003C86", "#9400E6", "#009FFA", "#FF71FD", "#7CFFFA", "#6A0213", "#008607",
           "#F60239", "#00E307", "#FFDC3D"]  # fmt: skip
ON_DARK = {"#000000": "#FFFFFF", "#68023F": "#B3568A", "#003C86": "#5A7FD6", "#6A0213": "#C0624F"}  # what would vanish on a dark page


def label_colours(n_classes: int, *, is_dark: bool = False) -> list[str]:
    """Return a colour (#RRGGBB) for each of `n_classes`.

    Up to 15 are told apart whatever the eye's cones; more are steps of one scale of even lightness change, for which names must
    be shown too.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    known = OKABE_ITO if n_classes <= len(OKABE_ITO) else FIFTEEN
    if n_classes <= len(known):
        return [ON_DARK.get(colour, colour) if is_dark else colour for colour in known[:n_classes]]
    scale = colormaps["turbo"]
    return [to_hex(scale(0.05 + 0.9 * number / (n_classes - 1))) for number in range(n_classes)]


def number_ramp(n_steps: int = 64) -> list[str]:
    """Return the colours (#RRGGBB) of numbers from low to high: cividis, made for colour-blind eyes."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["cividis"](step / (n_steps - 1))) for step in range(n_steps)]
