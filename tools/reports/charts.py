"""Charts and tables of reports: plotly figures with the numbers beside them, tables whose cells are shaded by value."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from downstream.palettes import OKABE_ITO, label_colours

MOST_POINTS = 1500  # of a curve; longer ones are means over equal stretches
DASHES = ["solid", "dash", "dot", "dashdot"]


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure for the page, what it shows in words, and its numbers as a table for those who do not see it."""

    title: str
    text: str
    figure_json: str
    numbers: Table

    @property
    def height(self) -> int:
        """Pixels."""
        return int(json.loads(self.figure_json)["layout"]["height"])


@dataclass(frozen=True, eq=False)
class Table:
    """A table of a page.

    Attributes
    ----------
    head : [str]
        Column names, that of the row names first.
    rows : [(name, [(text, shade), ...]), ...]
        `shade` is a number from -1 to 1, 0 for none: how strongly the cell is tinted, and in which of two colours.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[tuple[str, float]]]]


def table_of(frame: pd.DataFrame, title: str, *, corner: str = "", digits: int = 3, shades: pd.DataFrame | None = None) -> Table:
    """Make a table of a frame, its index as row names; `shades`, of the same shape, tints its cells."""
    tint = np.zeros(frame.shape) if shades is None else np.nan_to_num(shades.to_numpy(dtype=float)).clip(-1, 1)
    rows = [(str(name), [(_text(value, digits), float(shade)) for value, shade in zip(values, tints, strict=True)])
            for name, values, tints in zip(frame.index, frame.itertuples(index=False, name=None), tint, strict=True)]  # fmt: skip
    return Table(title, [corner, *map(str, frame.columns)], rows)


def facts_table(facts: Mapping[str, Any], title: str) -> Table:
    """Make a table of two columns, names and values."""
    return Table(title, ["", ""], [(str(name), [(_text(value, 4), 0.0)]) for name, value in facts.items()])


def curves_chart(title: str, text: str, curves: Mapping[str, pd.Series], *, x_title: str, y_title: str = "", markers: bool = False) -> Chart:
    """Draw curves over a common x (the index of each); no two differ by colour alone."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout(x_title, y_title))
    for number, (name, curve) in enumerate(curves.items()):
        curve = thinned(curve)
        mode = "lines+markers" if markers or len(curve) < 12 else "lines"
        line = {"color": _ink(number), "dash": DASHES[number // 7 % len(DASHES)], "width": 1.8}
        figure.add_scatter(
            x=curve.index.to_numpy(), y=curve.to_numpy(), name=html.escape(name), mode=mode, line=line, marker={"symbol": number % 8, "size": 7}
        )
    figure.update_layout(showlegend=len(curves) > 1)
    ends = pd.DataFrame({name: {"first": curve.iloc[0], "least": curve.min(), "largest": curve.max(), "last": curve.iloc[-1]}
                         for name, curve in curves.items() if len(curve)}).T  # fmt: skip
    return Chart(title, text, str(figure.to_json()), table_of(ends, f"{title}: numbers"))


def shares_chart(title: str, text: str, shares: pd.DataFrame) -> Chart:
    """Draw rows of shares as stacked bars, one colour a column, the same as on the map."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout("share of cells", ""))
    for colour, column in zip(label_colours(shares.shape[1]), shares.columns, strict=True):
        marker = {"color": colour, "line": {"color": "#888", "width": 0.5}}
        figure.add_bar(y=_escaped(shares.index), x=shares[column], name=html.escape(str(column)), orientation="h", marker=marker)
    figure.update_layout(barmode="stack", height=160 + 34 * len(shares))
    figure.update_yaxes(autorange="reversed", type="category")
    figure.update_xaxes(range=[0, 1], tickformat=".0%")
    return Chart(title, text, str(figure.to_json()), table_of(shares, f"{title}: numbers", digits=3))


def bars_chart(title: str, text: str, values: pd.Series, *, x_title: str) -> Chart:
    """Draw one bar a row, longest names readable."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout(x_title, ""))
    figure.add_bar(y=_escaped(values.index), x=values.to_numpy(), orientation="h", marker={"color": _ink(0)})
    figure.update_layout(height=140 + 24 * len(values))
    figure.update_yaxes(autorange="reversed", type="category")
    return Chart(title, text, str(figure.to_json()), table_of(values.to_frame(x_title), f"{title}: numbers"))


def calibration_chart(title: str, bins: pd.DataFrame, error: float) -> Chart:
    """Draw accuracy over confidence beside the line where they are equal."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout("confidence", "share that is right"))
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="as it should be", line={"color": "#888888", "dash": "dash"})
    figure.add_scatter(x=bins["confidence"], y=bins["accuracy"], customdata=bins["n_cells"], mode="lines+markers",
                       name="predictions", line={"color": _ink(0)},
                       hovertemplate="confidence %{x:.2f}, right %{y:.2f}, %{customdata:,} cells<extra></extra>")  # fmt: skip
    figure.update_xaxes(range=[0, 1.02])
    figure.update_yaxes(range=[0, 1.02])
    text = f"Confidence and accuracy differ by {error:.3f} on average (expected calibration error); below the line is too sure."
    return Chart(title, text, str(figure.to_json()), table_of(bins.set_index("confidence"), f"{title}: numbers", corner="confidence"))


def differences_chart(title: str, text: str, rows: pd.DataFrame) -> Chart:
    """Draw differences, rows with columns name, slice, difference, one line of points a name; `low` and `high`, where given, as bars."""
    import plotly.graph_objects as go

    figure = go.Figure(layout=_layout("difference", ""))
    names = list(dict.fromkeys(rows["name"]))
    figure.add_scatter(x=rows["difference"], y=_escaped(rows["name"]), text=_escaped(rows["slice"]), mode="markers", name="a slice",
                       marker={"color": _ink(4), "size": 9}, hovertemplate="%{text}: %{x:+.3f}<extra></extra>")  # fmt: skip
    means = rows.groupby("name", sort=False)["difference"].mean()
    figure.add_scatter(
        x=means.to_numpy(), y=_escaped(means.index), mode="markers", name="mean", marker={"color": _ink(5), "symbol": "diamond", "size": 12}
    )
    figure.update_layout(height=160 + 30 * len(names))
    figure.update_yaxes(autorange="reversed", type="category")
    return Chart(title, text, str(figure.to_json()), table_of(rows.set_index("name"), f"{title}: numbers"))


def thinned(curve: pd.Series) -> pd.Series:
    """Return a curve of at most `MOST_POINTS` points, means over equal stretches of a longer one."""
    stretch = -(-len(curve) // MOST_POINTS)
    if stretch <= 1:
        return curve
    groups = np.arange(len(curve)) // stretch
    return pd.Series(curve.groupby(groups).mean().to_numpy(), index=curve.index.to_series().groupby(groups).last().to_numpy())


def _layout(x_title: str, y_title: str) -> dict[str, Any]:
    margin = {"l": 50, "r": 10, "t": 50, "b": 45}
    legend = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    return {"height": 340, "margin": margin, "legend": legend, "xaxis": {"title": {"text": x_title}}, "yaxis": {"title": {"text": y_title}}}


def _escaped(names: Iterable[object]) -> list[str]:
    """Names as plotly shows them letter by letter; it reads tags."""
    return [html.escape(str(name)) for name in names]


def _ink(number: int) -> str:
    """A colour that is seen on white and on dark: the palette without its black."""
    return OKABE_ITO[number % (len(OKABE_ITO) - 1)]


def _text(value: Any, digits: int) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return "–"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if isinstance(value, (float, np.floating)):
        value = float(value)
        if value and abs(value) < 1e-3:
            return f"{value:.{digits}g}"
        return f"{value:,.0f}" if abs(value) >= 1e5 else f"{value:,.{digits}f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(inner, digits)}" for name, inner in value.items())
    if isinstance(value, (list, tuple, np.ndarray)):
        return ", ".join(_text(inner, digits) for inner in value)
    return str(value)
