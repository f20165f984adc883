"""Pages of the documentation that are made when it is built: commands, API, faults, tutorials, and the files of the repository's root.

mkdocs calls `on_files` and `on_page_markdown`; nothing that they make is kept by hand.
"""

from __future__ import annotations

import ast
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, normpath, relpath
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGES = {  # page of the site -> file of the repository
    "ARCHITECTURE.md": "ARCHITECTURE.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "configs.md": "configs/README.md",
}
API = {
    "Slices and corpora": ["corpus.slice", "corpus.store", "corpus.view", "corpus.loader", "corpus.simulate"],
    "Models": ["stofm.checkpoint", "stofm.cell_encoder", "stofm.se2_transformer", "stofm.batch", "stofm.fields", "stofm.errors"],
    "Training": ["pretrain.config", "pretrain.objectives", "pretrain.masking"],
    "Use": ["downstream.embedding", "downstream.heads", "downstream.evaluate", "downstream.scores", "downstream.diagnostics", "downstream.plots"],
}
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)(#[^)\s]*)?\)")
TABLE = re.compile(r"<table[^>]*>(.*?)</table>", re.DOTALL)  # of pandas, which says how it should look; the theme knows better


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made here."""
    from mkdocs.structure.files import File

    texts = {"commands.md": commands(), "troubleshooting.md": troubleshooting(), "api.md": api(), "results.md": results_list()}
    texts |= {page: (ROOT / path).read_text(encoding="utf-8") for page, path in PAGES.items()}
    texts |= {f"results/{path.name}": path.read_text(encoding="utf-8") for path in result_files()}
    pictures: dict[str, bytes] = {}
    for path in tutorial_files():
        texts[tutorial_page(path)], found = tutorial(path)
        pictures |= found
    for page, content in (texts | pictures).items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    return with_page_links(markdown, page.file.src_uri)


def with_page_links(markdown: str, page: str) -> str:
    """Return the text of a page with its links to files of the repository as links to their pages, where they have one."""
    file = PAGES.get(page, page if page.startswith("results/") else f"docs/{page}")
    page_of = {path: other for other, path in PAGES.items()} | {"README.md": "index.md"}
    page_of |= {f"docs/tutorials/{path.name}": tutorial_page(path) for path in tutorial_files()}

    def relinked(match: re.Match[str]) -> str:
        target = normpath(f"{dirname(file)}/{match[1]}").lstrip("/")
        other = page_of.get(target, target.removeprefix("docs/"))
        return f"]({relpath(other, dirname(page) or '.')}{match[2] or ''})"

    return LINK.sub(relinked, markdown)


def commands() -> str:
    """Return the command reference, as typer writes it from the command line itself."""
    import click
    import typer
    from typer.cli import get_docs_for_click

    from tools.cli import app

    command = typer.main.get_command(app)
    text = get_docs_for_click(obj=command, ctx=click.Context(command, info_name="stofm"), name="stofm", title="Commands")
    return re.sub(r"\[(default|required)[^\]]*\]", lambda found: found[0].replace("[", "\\[").replace("]", "\\]"), text)


def api() -> str:
    """Return the page that mkdocstrings fills from the docstrings."""
    lines = ["# API", "", "What the docstrings say. Shapes use the letters of [Architecture](ARCHITECTURE.md#words-letters-units).", ""]
    for title, modules in API.items():
        lines += [f"# {title}", "", *(f"::: {module}\n" for module in modules)]
    return "\n".join(lines)


def troubleshooting() -> str:
    """Return every error that the code raises, as it says it, those of slices by their code."""
    found = sorted(errors())
    lines = [
        "# Troubleshooting", "",
        "Bad input ends in one line and exit code 2: *where: what was found; what was expected. What to do.*",
        "`--debug` in front of the verb shows where it was raised.",
        "`stofm check SLICE` says all that is wrong with a slice at once. Words in braces stand for what was found.", "",
        "## Faults of a slice", "",
        "A slice with a fault is set aside by `stofm build` under its code, and refused by the other verbs.", "",
    ]  # fmt: skip
    for code in sorted({code for code, _, _ in found if code.isupper()}):
        lines += [f"### {code}", "", *(f"- {text}" for other, _, text in found if other == code), ""]
    for kind in sorted({code for code, _, _ in found if not code.isupper()}):
        lines += [f"## {kind}", ""]
        for module in sorted({module for other, module, _ in found if other == kind}):
            lines += [f"**{module}**", "", *(f"- {text}" for other, where, text in found if (other, where) == (kind, module)), ""]
    return "\n".join(lines)


def errors() -> Iterator[tuple[str, str, str]]:
    """Yield (code of a slice's fault or name of the error, module, message) of every error that is made with a message in the code."""
    kinds = {"ConfigError", "DataError", "FormatError", "CheckpointError", "EnvironmentFault"}
    for package in ("corpus", "stofm", "pretrain", "downstream", "tools"):
        for path in sorted((ROOT / package).rglob("*.py")):
            module = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
                    continue
                if node.func.id == "BadSlice" and len(node.args) == 2 and isinstance(node.args[0], ast.Constant):
                    yield from ((str(node.args[0].value), module, text) for text in _messages(node.args[1]))
                elif node.func.id in kinds:
                    yield from ((node.func.id, module, text) for text in _messages(node.args[0]))


def _messages(node: ast.expr) -> Iterator[str]:
    """Yield the texts that a message may be, what it is filled with in braces, safe in Markdown; nothing for what is no text."""
    if isinstance(node, ast.IfExp):
        yield from (*_messages(node.body), *_messages(node.orelse))
    elif isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{...}" for part in parts)
        yield re.sub(r"([\\`*_{}\[\]<>|])", r"\\\1", " ".join(text.split()))


def tutorial_files() -> list[Path]:
    """Return the notebooks, by name."""
    return sorted((ROOT / "docs/tutorials").glob("*.ipynb"))


def tutorial_page(path: Path) -> str:
    """Return the page that a notebook is shown on; the notebook itself lies beside it."""
    return f"tutorials/{path.stem}.md"


def tutorial(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as it was last run: the text of its page, and its pictures by where they go on the site."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", [])})
            if "image/png" in data:
                name = f"{path.stem}_{number}.png"
                pictures[f"tutorials/{name}"] = base64.b64decode("".join(data["image/png"]))
                parts.append(f"![What the cell above shows]({name})")
            elif table := TABLE.search("".join(data.get("text/html", []))):
                parts.append(f"<table>{table[1]}</table>")
            elif text := "".join(data.get("text/plain", [])).rstrip():
                parts.append(f"```text\n{text}\n```")
    # Raw HTML, for the link is to the notebook and must not become one to its page.
    parts.append(f'<a href="{path.name}" download>This page as a notebook</a>')
    return "\n\n".join(parts) + "\n", pictures


def result_files() -> list[Path]:
    """Return what `make bench` has kept, by name."""
    return sorted((ROOT / "results").glob("*.md"))


def results_list() -> str:
    """Return the list of measurements."""
    lines = [f"- [{path.read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}](results/{path.name}), {path.stem.rpartition('_')[2]}"
             for path in result_files()]  # fmt: skip
    return "\n".join(["# Results as measured", "", "Question, command, machine, versions, figures and reading of each.", "", *lines, ""])
