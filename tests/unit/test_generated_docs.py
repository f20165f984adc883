"""Pages of the documentation that are made from the code when it is built."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def generated():
    spec = importlib.util.spec_from_file_location("generated", ROOT / "docs/generated.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_has_every_verb_with_its_options(generated):
    text = generated.commands()
    for verb in (
        "demo",
        "check",
        "build",
        "seen",
        "corpus repair",
        "train",
        "model import",
        "embed",
        "segment fit",
        "annotate predict",
        "evaluate",
        "report",
    ):
        assert f"`stofm {verb}`" in text
    assert "--um-per-unit" in text


def test_every_fault_of_a_slice_has_its_place_in_troubleshooting(generated):
    text = generated.troubleshooting()
    table = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8").partition("### Faults of a slice")[2].partition("## Three identities")[0]
    codes = re.findall(r"`([A-Z_]+)`", table)
    assert len(codes) > 15
    assert [code for code in codes if f"### {code}\n" not in text] == []
    assert "Run \\`stofm embed\\` on it first" in text


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("ARCHITECTURE.md", "docs/models.md", "models.md"),
        ("models.md", "../ARCHITECTURE.md#laws", "ARCHITECTURE.md#laws"),
        ("configs.md", "../results/scales_cpu_2026-11-21.md", "results/scales_cpu_2026-11-21.md"),
        ("index.md", "images/slice_report.png", "images/slice_report.png"),
        ("CONTRIBUTING.md", "README.md", "index.md"),
        ("index.md", "tutorials/embed_and_segment.ipynb", "tutorials/embed_and_segment.md"),
        ("tutorials/embed_and_segment.md", "pretrain_on_your_slices.ipynb", "pretrain_on_your_slices.md"),
        ("tutorials/embed_and_segment.md", "../tasks.md", "../tasks.md"),
        ("index.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_links_between_files_become_links_between_pages(generated, page, link, expected):
    assert generated.with_page_links(f"see [it]({link}).", page) == f"see [it]({expected})."


def test_the_page_of_a_notebook_holds_its_words_its_code_and_what_that_showed(generated, tmp_path):
    shown = [
        {"output_type": "stream", "name": "stdout", "text": ["right: 2\n"]},
        {
            "output_type": "execute_result",
            "data": {"text/html": ['<div><style>x</style><table border="1"><tr></tr></table></div>'], "text/plain": ["t"]},
        },
        {"output_type": "execute_result", "data": {"image/png": "UE5H", "text/plain": ["<Image>"]}},
    ]
    cells = [{"cell_type": "markdown", "source": ["# Two\n", "words"]}, {"cell_type": "code", "source": ["1 + 1"], "outputs": shown}]
    (tmp_path / "made.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    text, pictures = generated.tutorial(tmp_path / "made.ipynb")
    words, code, printed, table, picture, link = text.rstrip("\n").split("\n\n")
    assert (words, code, printed) == ("# Two\nwords", "```python\n1 + 1\n```", "```text\nright: 2\n```")
    assert (table, picture) == ("<table><tr></tr></table>", "![What the cell above shows](made_1.png)")
    assert 'href="made.ipynb"' in link
    assert pictures == {"tutorials/made_1.png": b"PNG"}


def test_every_notebook_has_its_place_in_the_navigation(generated):
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert len(generated.tutorial_files()) == 3
    assert [path.name for path in generated.tutorial_files() if generated.tutorial_page(path) not in nav] == []


def test_the_navigation_names_pages_that_exist(generated):
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "mkdocs.yml"))
    pages = [page for part in config["nav"] for inside in part.values() for page in inside]
    made = {*generated.PAGES, "commands.md", "troubleshooting.md", "api.md", "results.md", *map(generated.tutorial_page, generated.tutorial_files())}
    assert [page for page in pages if page not in made and not (ROOT / "docs" / page).is_file()] == []
