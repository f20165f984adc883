"""Reports opened in a browser from the file system, offline: what is drawn, read by pointer and keys, filtered and coloured."""

from __future__ import annotations

import re
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from annotated import write_annotated
from bench_report import MOST_MB, TINY, measure
from browser import chromium, keep, opened, pixels, share_of
from cli import succeed

from downstream.evaluate import EVALUATION_KIND
from downstream.palettes import label_colours
from stofm.durable import claim_folder
from tools.reports.points import page_order, quantise

KINDS = ["slice", "corpus", "run", "evaluation"]
BREAKING = "</script><b>&"


@pytest.fixture(scope="module")
def annotated_slice(tmp_path_factory) -> Path:
    return write_annotated(tmp_path_factory.mktemp("annotated") / "slice.h5ad")


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory) -> Path:
    """An evaluation of two slices by three kinds of features, with intervals."""
    folder = tmp_path_factory.mktemp("evaluation")
    claim_folder(folder, EVALUATION_KIND)
    rows = [{"task": "region", "held_out": held_out, "features": features, "macro_f1": score, "macro_f1_low": score - 0.05,
             "macro_f1_high": score + 0.05, "accuracy": score, "seen_in_pretraining": held_out == "a"}
            for held_out, scores in {"a": (0.5, 0.6, 0.7), "b": (0.4, 0.7, 0.6)}.items()
            for features, score in zip(("PCA", "cell encoder", "SToFM"), scores, strict=True)]  # fmt: skip
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    (folder / "config.yaml").write_text("model: a model\n")
    return folder


@pytest.fixture(scope="module")
def pages(annotated_slice, tiny_corpus, tiny_run, evaluation, tmp_path_factory) -> dict[str, Path]:
    """The report of each kind, as the command line writes it."""
    folder = tmp_path_factory.mktemp("reports")
    sources = {"slice": annotated_slice, "corpus": tiny_corpus.folder, "run": tiny_run, "evaluation": evaluation}
    for kind, source in sources.items():
        assert "report: " in succeed("report", source, "--out", folder / f"{kind}.html")
    return {kind: folder / f"{kind}.html" for kind in KINDS}


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def table(annotated_slice):
    """The slice of the report, its cells in the order in which the page has them."""
    table = anndata.read_h5ad(annotated_slice)
    places, _ = quantise(table.obsm["spatial"])
    return table[page_order(places)]


@pytest.fixture(scope="module")
def slice_page(browser, pages):
    """The report of a slice, opened once: that takes longer than any test of it."""
    with opened(browser, pages["slice"]) as page:
        yield page, page.input_value("#colour-by"), page.input_value("#compare-with")


@pytest.fixture
def both_maps(slice_page):
    """The report of a slice as it opens."""
    page, colour_by, compare_with = slice_page
    if page.get_attribute("#theme", "aria-pressed") == "true":
        page.click("#theme")
    page.select_option("#colour-by", colour_by)
    page.select_option("#compare-with", compare_with)
    if page.locator("#show-all").is_enabled():
        page.click("#show-all")
    page.locator("#map").focus()
    page.keyboard.press("0")
    settled(page)
    return page


@pytest.fixture
def page(both_maps):
    """The report of a slice with its first map alone."""
    both_maps.select_option("#compare-with", "")
    both_maps.wait_for_selector("#map-2", state="hidden")
    settled(both_maps)
    return both_maps


def settled(page) -> None:
    """Wait until what was asked for is drawn."""
    page.evaluate("new Promise(done => setTimeout(() => requestAnimationFrame(() => requestAnimationFrame(done)), 150))")


def test_the_benchmark_of_reports_runs_tiny(tmp_path):
    """Here, where what reports are drawn with is compiled anyway; and first, for there is one browser at a time."""
    assert measure(tmp_path, TINY)["MB"][0] < MOST_MB


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_opens_offline_without_a_complaint_and_can_be_read_everywhere(kind, browser, pages, tmp_path):
    with opened(browser, pages[kind]) as page:
        settled(page)
        assert page.title().endswith("SToFM")
        assert page.locator("section").count() >= 2
        for chart in page.locator("[data-figure]").all():
            chart.scroll_into_view_if_needed()
            chart.locator("svg.main-svg").first.wait_for(state="attached")
        has_words_beside_all_it_draws(page)
        assert keep(page, f"{kind}_light", tmp_path).stat().st_size > 10_000

        page.emulate_media(color_scheme="dark")
        page.set_viewport_size({"width": 390, "height": 844})
        settled(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.documentElement.dataset.theme") == "dark"
        assert np.median(pixels(page, "main")) < 0.2
        keep(page, f"{kind}_dark_phone", tmp_path)


def has_words_beside_all_it_draws(page) -> None:
    assert [one.get_attribute("alt") for one in page.locator("img").all() if not one.get_attribute("alt")] == []
    for chart in page.locator("figure:has([data-figure])").all():
        assert chart.locator("[role=img]").get_attribute("aria-label")
        assert chart.locator("details table tr").count() > 1
    controls = "[...document.querySelectorAll('button, select, input, [tabindex]')]"
    assert page.evaluate(f"{controls}.filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).length") == 0


def test_true_and_predicted_are_drawn_side_by_side_in_the_same_colours(both_maps):
    page = both_maps
    for colour in label_colours(3):
        assert share_of(pixels(page, "#map"), colour) > 0.01
        assert share_of(pixels(page, "#map-2"), colour) > 0.01
    before = pixels(page, "#map-2")
    page.locator("#map").focus()
    page.keyboard.press("+")
    settled(page)
    assert (pixels(page, "#map-2") != before).any()  # one camera


def test_a_cell_under_the_pointer_says_what_it_is(page, table):
    page.locator("#map").evaluate("map => map.scrollIntoView({block: 'center'})")
    box = page.locator("#map").bounding_box()
    for row in (100, 250):
        x, y = page.evaluate(f"tissue.maps[0].plot.getScreenPosition({row})")
        page.mouse.move(box["x"] + x - 40, box["y"] + y)
        page.mouse.move(box["x"] + x, box["y"] + y)
        settled(page)
        page.wait_for_function("!document.querySelector('#tip').hidden")
        shown = dict(zip(page.locator("#tip dt").all_inner_texts(), page.locator("#tip dd").all_inner_texts(), strict=True))
        assert shown["region, true"] == table.obs["region"].iloc[row]
        assert shown["cell type, true"] == table.obs["cell_type"].iloc[row]


def test_a_class_is_hidden_by_its_legend_and_shown_again(page, table):
    first, *rest = label_colours(3)
    n_first = int((table.obs["region"] == sorted(table.obs["region"].unique())[0]).sum())
    button = page.locator("#legend .class button").first
    button.click()
    page.wait_for_function(f"document.querySelector('#map').dataset.shown == {table.n_obs - n_first}")
    settled(page)
    picture = pixels(page, "#map")
    assert share_of(picture, first) == 0
    assert min(share_of(picture, colour) for colour in rest) > 0.01
    assert page.locator("#legend .class button").first.get_attribute("aria-pressed") == "false"
    page.click("#show-all")
    page.wait_for_function(f"document.querySelector('#map').dataset.shown == {table.n_obs}")
    settled(page)
    assert share_of(pixels(page, "#map"), first) > 0.01


def test_one_class_is_singled_out(page, table):
    page.locator("#legend .class .only").nth(1).click()
    n_cells = int((table.obs["region"] == sorted(table.obs["region"].unique())[1]).sum())
    page.wait_for_function(f"document.querySelector('#map').dataset.shown == {n_cells}")
    assert re.match(rf"{n_cells} of {table.n_obs} cells", page.locator("#n-shown").inner_text())


def test_cells_are_coloured_by_any_column(page):
    before = pixels(page, "#map")
    for group in ("Genes", "Predictions", "Other columns", "Embedding"):
        name = page.locator(f"#colour-by optgroup[label='{group}'] option").last.get_attribute("value")
        page.select_option("#colour-by", name)
        page.wait_for_function(f"document.querySelector('#map').dataset.column == {name!r}")
        settled(page)
        now = pixels(page, "#map")
        assert (np.abs(now - before).max(axis=-1) > 0.1).mean() > 0.02, group
        before = now


def test_a_range_of_numbers_filters(page, table):
    page.select_option("#colour-by", "depth")
    page.wait_for_function("document.querySelector('#map').dataset.column == 'depth'")
    low = page.locator("#legend input[type=range]").first
    low.evaluate("input => { input.value = 128; input.dispatchEvent(new Event('change')); }")
    page.wait_for_function(f"document.querySelector('#map').dataset.shown < {table.n_obs}")
    assert int(page.get_attribute("#map", "data-shown")) > 0


def test_the_map_is_moved_and_read_by_keys_alone(page):
    page.locator("#map").focus()
    distance = page.evaluate("tissue.maps[0].plot.get('cameraDistance')")
    page.keyboard.press("+")
    settled(page)
    assert page.evaluate("tissue.maps[0].plot.get('cameraDistance')") < distance
    target = page.evaluate("tissue.maps[0].plot.get('cameraTarget')[0]")
    page.keyboard.press("ArrowRight")
    settled(page)
    assert page.evaluate("tissue.maps[0].plot.get('cameraTarget')[0]") > target
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#live').textContent.includes('region, true: ')")
    page.keyboard.press("0")
    settled(page)
    assert page.evaluate("tissue.maps[0].plot.get('cameraDistance')") == pytest.approx(distance, rel=1e-3)


def test_the_theme_is_switched_by_a_button(page):
    assert np.median(pixels(page, "#map")) > 0.5
    page.click("#theme")
    settled(page)
    assert np.median(pixels(page, "header")) < 0.2


def test_names_in_a_file_cannot_break_the_page(page):
    assert BREAKING in page.locator("#legend").inner_text()
    assert page.locator("b").count() == 0
    assert any(BREAKING in text for text in page.locator("table").all_text_contents())
