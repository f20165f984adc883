"""Options of `segment` and `annotate` by the command line: nothing overwritten unasked, abstention, smoothing, fine-tuning."""

from __future__ import annotations

import anndata
import pytest
from cli import contents, refused, succeed


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_earlier_results_are_kept_unless_overwriting_is_asked_for(embedded, region_head, here):
    succeed("segment", "predict", embedded[2], "--head", region_head, "--out", "out")
    before = contents(here / "out")
    line = refused("segment", "predict", embedded[2], "--head", region_head, "--out", "out", "--smooth", "6")
    assert "output out/slice_2.h5ad: found an earlier result; expected none" in line
    assert contents(here / "out") == before
    succeed("segment", "predict", embedded[2], "--head", region_head, "--out", "out", "--smooth", "6", "--min-confidence", "0.5", "--overwrite")
    obs = anndata.read_h5ad(here / "out/slice_2.h5ad").obs
    assert {"stofm_region_raw", "stofm_region_set", "stofm_region_novelty"} <= set(obs)
    assert (obs["stofm_region"].isna() == (obs["stofm_region_probability"] < 0.5)).all()
    assert obs["stofm_region_raw"].notna().all()


def test_an_earlier_head_is_kept_unless_overwriting_is_asked_for(embedded, here):
    succeed("annotate", "fit", *embedded[:2], "--out", "head")
    before = contents(here / "head")
    assert "found an earlier result" in refused("annotate", "fit", *embedded[:2], "--out", "head", "--kind", "knn")
    assert contents(here / "head") == before
    succeed("annotate", "fit", *embedded[:2], "--out", "head", "--kind", "knn", "--overwrite")
    assert contents(here / "head") != before


def test_fine_tuning_wants_the_model(embedded):
    line = refused("segment", "fit", *embedded[:2], "--out", "head", "--kind", "finetune", "--depth", "lora")
    assert "Name its folder with --model" in line


@pytest.mark.parametrize(("option", "value"), [("--kind", "forest"), ("--coverage", "1.5")])
def test_an_option_out_of_range_is_refused(option, value, embedded, region_head):
    words = {"--kind": ["fit", *embedded[:2]], "--coverage": ["predict", embedded[2], "--head", region_head]}[option]
    assert value in refused("segment", *words, "--out", "out", option, value)
