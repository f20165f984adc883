"""The command line answers before anything heavy is imported, and every verb explains itself."""

from __future__ import annotations

import subprocess
import sys

import pytest
from cli import refused, stofm, succeed

import stofm as package

HEAVY = ["torch", "anndata", "squidpy", "spatialdata", "scanpy", "transformers", "accelerate", "sklearn", "pandas"]
HELP_AND_IMPORTS = """
import sys
sys.argv = ["stofm", "--help"]
from tools.cli import main
try:
    main()
finally:
    print("imported:", *sorted({name.partition(".")[0] for name in sys.modules}))
"""
VERBS = {
    "demo": "--seed",
    "check": "--um-per-unit",
    "build": "key=value",
    "seen": "--corpus",
    "corpus": "repair",
    "corpus show": "set aside",
    "corpus verify": "offset",
    "corpus repair": "same bytes",
    "train": "torchrun",
    "plan": "--device",
    "adapt": "--reference",
    "model": "import",
    "model import": "--cell-encoder",
    "model show": "--json",
    "model push": "--repo",
    "embed": "--scheme",
    "verify": "rows that differ",
    "export": "geojson",
    "segment": "predict",
    "segment fit": "--label",
    "segment predict": "--head",
    "annotate": "predict",
    "annotate fit": "--label",
    "annotate predict": "--head",
    "evaluate": "key=value",
    "cluster": "--n-clusters",
    "deconvolve": "predict",
    "deconvolve fit": "--panel",
    "deconvolve predict": "--truth",
    "impute": "--reference",
    "index": "query",
    "index build": "--recall",
    "index query": "--region",
    "index plan": "--vectors",
    "compare": "key=value",
    "report": "--gene",
}


def test_help_answers_without_importing_anything_heavy():
    done = subprocess.run([sys.executable, "-c", HELP_AND_IMPORTS], capture_output=True, text=True, check=True, timeout=30)
    for verb in {words.split()[0] for words in VERBS}:
        assert verb in done.stdout
    imported = done.stdout.rpartition("imported:")[2].split()
    assert "typer" in imported
    assert sorted(set(imported) & set(HEAVY)) == []


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb):
    assert VERBS[verb] in succeed(*verb.split(), "--help")


def test_version_is_that_of_the_package():
    assert succeed("--version").strip() == package.__version__


def test_an_unknown_verb_is_a_mistake_of_the_user():
    assert stofm("embark").code == 2


def test_debug_shows_where_an_error_was_raised(tmp_path):
    words = ("build", tmp_path / "none.yaml")
    assert "no such file" in refused(*words)
    with pytest.raises(Exception, match="no such file"):
        stofm("--debug", *words)
