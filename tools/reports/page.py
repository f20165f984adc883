"""One file of HTML: a template with style, script and data in it."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import stofm
from stofm.durable import replacing
from tools.reports.charts import Chart, Table


@dataclass(frozen=True, eq=False)
class Picture:
    """A raster picture and what it shows in words."""

    caption: str
    alt: str
    data: bytes  # PNG

    @property
    def url(self) -> str:
        return "data:image/png;base64," + base64.b64encode(self.data).decode("ascii")


@dataclass(frozen=True, eq=False)
class Section:
    """A part of a page: a heading with charts, tables and pictures below it."""

    title: str
    text: str = ""
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    code: str = ""

    def __bool__(self) -> bool:
        return bool(self.text or self.charts or self.tables or self.pictures or self.code)


@dataclass(frozen=True, eq=False)
class TissueData:
    """What the map needs: `meta` as JSON, and blocks of numbers by id; columns by the heading they are offered under."""

    meta: dict[str, Any]
    blocks: dict[str, str]
    start: str
    compare: str

    @property
    def groups(self) -> dict[str, list[dict[str, Any]]]:
        groups: dict[str, list[dict[str, Any]]] = {}
        for column in self.meta["columns"]:
            groups.setdefault(column["group"], []).append(column)
        return groups


def write_page(
    path: Path, *, kind: str, title: str, lead: str, facts: Mapping[str, str], sections: list[Section], tissue: TissueData | None = None
) -> Path:
    """Write a report to `path`, whole or not at all; returns the path."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=PackageLoader("tools.reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["script_json"] = script_json
    static = files("tools.reports") / "static"
    texts = {name: (static / name).read_text(encoding="utf-8") for name in ("report.css", "page.js", "tissue.js", "scatter.min.js")}
    shown = [section for section in sections if section]
    plotly = get_plotlyjs() if any(section.charts for section in shown) else ""
    stream = environment.get_template("page.html").stream(
        kind=kind, title=title, lead=lead, facts=facts, sections=shown, tissue=tissue, css=texts["report.css"], version=stofm.__version__,
        scripts=[*([texts["scatter.min.js"], texts["tissue.js"]] if tissue else []), texts["page.js"]], plotly=plotly,
    )  # fmt: skip
    with replacing(path) as aside, aside.open("wb") as file:
        stream.dump(file, encoding="utf-8")
    return path


def script_json(value: Any) -> str:
    """Return JSON that may stand inside a script element: nothing in it can close the element."""
    from markupsafe import Markup

    text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
