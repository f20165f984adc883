"""`stofm check`: for people a line a subject, for programs one document, and an exit code for both."""

from __future__ import annotations

import json

import anndata
import pytest
from cli import refused, stofm, succeed


@pytest.fixture
def pixels(simulated_paths, tmp_path):
    table = anndata.read_h5ad(simulated_paths[0])
    table.uns["provenance"]["unit"] = "pixel"
    table.write_h5ad(tmp_path / "pixels.h5ad")
    return tmp_path / "pixels.h5ad"


def test_people_read_a_verdict_a_subject_and_the_remedy(simulated_paths, pixels):
    outcome = stofm("check", simulated_paths[0], pixels)
    assert outcome.code == 2
    good, bad = outcome.stdout.split("pixels: cannot be used as it is")
    assert good.startswith("slice_0: can be used")
    assert "  fail  unit" in bad
    assert "-> if neighbouring cells are about 10 um apart, as is usual: --um-per-unit" in " ".join(bad.split())
    assert "  ok    genes" in bad


def test_the_remedy_is_the_cure(pixels):
    suggested = refused("check", pixels).rpartition("--um-per-unit ")[2].split()[0]
    assert "can be used" in succeed("check", pixels, "--um-per-unit", suggested)


def test_programs_read_one_document_whatever_is_wrong(simulated_paths, pixels, tmp_path):
    outcome = stofm("check", simulated_paths[0], pixels, tmp_path / "none.h5ad", "--json")
    assert outcome.code == 2
    found = {one["slice_id"]: one for one in json.loads(outcome.stdout)["slices"]}
    assert {name: one["verdict"] for name, one in found.items() if name != "slice_0"} == {"pixels": "fail", "none": "fail"}
    assert found["slice_0"]["verdict"] != "fail"
    unit = next(one for one in found["pixels"]["findings"] if one["subject"] == "unit")
    assert (unit["verdict"], unit["code"], unit["values"]["declared"]) == ("fail", "UNIT_UNKNOWN", "pixel")
    assert [one["subject"] for one in found["none"]["findings"]] == ["file"]


@pytest.mark.parametrize("against", ["--model", "--corpus"])
def test_a_slice_is_checked_against_the_genes_of_a_model_or_corpus(against, simulated_paths, tiny_run, tiny_corpus):
    folder = tiny_run / "model" if against == "--model" else tiny_corpus.folder
    assert "with 100.0% of their counts" in " ".join(succeed("check", simulated_paths[1], against, folder).split())
    assert "vocabulary" not in succeed("check", simulated_paths[1])


def test_genes_of_two_things_or_of_none_are_refused(simulated_paths, tiny_run, tiny_corpus, tmp_path):
    line = refused("check", simulated_paths[0], "--model", tiny_run / "model", "--corpus", tiny_corpus.folder)
    assert "found --model and --corpus; expected one of them" in line
    assert "found no such folder; expected one of kind 'stofm-model/1'" in refused("check", simulated_paths[0], "--model", tmp_path / "none")
