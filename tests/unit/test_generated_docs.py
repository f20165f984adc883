"""Pages of the documentation that are made from the code when it is built."""

from __future__ import annotations

import importlib.util
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
        ("index.md", "https://example.org/a.md", "https://example.org/a.md"),
    ],
)
def test_links_between_files_become_links_between_pages(generated, page, link, expected):
    assert generated.with_page_links(f"see [it]({link}).", page) == f"see [it]({expected})."


def test_the_navigation_names_pages_that_exist(generated):
    config = OmegaConf.to_container(OmegaConf.load(ROOT / "mkdocs.yml"))
    pages = [page for part in config["nav"] for inside in part.values() for page in inside]
    made = {*generated.PAGES, "commands.md", "troubleshooting.md", "api.md", "results.md"}
    assert [page for page in pages if page not in made and not (ROOT / "docs" / page).is_file()] == []
