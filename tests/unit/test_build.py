"""A corpus: what it refuses to overwrite, to take in or to read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import anndata
import pytest
from pydantic import ValidationError
from synth import corpus_config

from corpus.build import CorpusConfig, ToleranceConfig, build_corpus
from corpus.gene_vocab import GeneConfig
from corpus.lock import only_builder
from corpus.store import CORPUS_KIND, Corpus
from stofm.durable import claim_folder, tree_sha256
from stofm.errors import BadSlice, ConfigError, DataError, FormatError


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_corpus_of_other_settings_is_not_overwritten(here, simulated_paths):
    build_corpus(corpus_config(simulated_paths, "corpus"))
    before = tree_sha256(here)
    with pytest.raises(ConfigError, match="found a corpus of other settings; expected these ones"):
        build_corpus(corpus_config(simulated_paths[:2], "corpus"))
    assert tree_sha256(here) == before


def test_a_slice_that_changed_since_is_named(here, simulated_paths):
    mine = [Path(shutil.copy(path, here)) for path in simulated_paths]
    build_corpus(corpus_config(mine, "corpus"))
    data, times = bytearray(mine[1].read_bytes()), mine[1].stat()
    data[-1] ^= 1
    mine[1].write_bytes(data)
    os.utime(mine[1], ns=(times.st_atime_ns, times.st_mtime_ns))  # neither its size nor its time tells
    with pytest.raises(DataError, match="slice 'slice_1': its file changed, came or went since corpus corpus was built"):
        build_corpus(corpus_config(mine, "corpus"))


def test_a_slice_that_changed_since_is_taken_in_when_that_is_asked_for(here, simulated_paths):
    mine = [shutil.copy(path, here) for path in simulated_paths]
    first = build_corpus(corpus_config(mine, "corpus")).corpus_id
    shutil.copy(simulated_paths[0], mine[1])
    corpus = build_corpus(corpus_config(mine, "corpus"), accept_new=True)
    assert corpus.corpus_id != first
    assert corpus.slice_ids == ["slice_0", "slice_2"]
    assert [(one["slice_id"], one["code"]) for one in corpus.manifest["left_out"]] == [("slice_1", "DUPLICATE")]


def test_too_many_slices_set_aside_are_all_reported_and_the_build_goes_on_once_they_are_mended(here, simulated_paths):
    mine = [shutil.copy(path, here) for path in simulated_paths]
    (here / "slice_0.h5ad").unlink()
    (here / "slice_2.h5ad").unlink()
    reports: list[str] = []
    with pytest.raises(DataError, match=r"2 of 3 slices were set aside \(each named above\), more than `tolerance` allows"):
        build_corpus(corpus_config(mine, "corpus"), report=reports.append)
    assert [report[:15] for report in reports] == ["slice 'slice_0'", "slice 'slice_2'"]
    for path, mended in zip(simulated_paths, mine, strict=True):
        shutil.copy(path, mended)
    assert build_corpus(corpus_config(mine, "corpus")).slice_ids == ["slice_0", "slice_1", "slice_2"]


def test_a_slice_that_cannot_be_used_is_set_aside_and_taken_in_once_it_is_mended(here, simulated_paths):
    mine = [shutil.copy(path, here) for path in simulated_paths]
    (here / "slice_2.h5ad").write_bytes(b"spoilt")
    corpus = build_corpus(corpus_config(mine, "corpus"))
    assert corpus.slice_ids == ["slice_0", "slice_1"]
    assert [record["slice_id"] for record in corpus.manifest["quarantined"]] == ["slice_2"]
    assert (here / "corpus/quarantine/slice_2.json").is_file()
    shutil.copy(simulated_paths[2], mine[2])
    assert build_corpus(corpus_config(mine, "corpus")).slice_ids == ["slice_0", "slice_1", "slice_2"]
    assert not (here / "corpus/quarantine").exists()


def test_a_slice_set_aside_is_not_read_again_while_nothing_changes(here, simulated_paths):
    (here / "spoilt.h5ad").write_bytes(b"spoilt")
    config = corpus_config([*simulated_paths[:2], here / "spoilt.h5ad"], "corpus")
    build_corpus(config)
    before = {path: path.stat().st_mtime_ns for path in (here / "corpus").rglob("*.*") if path.name != ".lock"}
    build_corpus(config)
    assert {path: path.stat().st_mtime_ns for path in (here / "corpus").rglob("*.*") if path.name != ".lock"} == before


def test_a_strict_build_ends_at_one_slice_that_cannot_be_used(here, simulated_paths):
    (here / "spoilt.h5ad").write_bytes(b"spoilt")
    config = corpus_config([*simulated_paths, here / "spoilt.h5ad"], "corpus").model_copy(update={"tolerance": ToleranceConfig(strict=True)})
    with pytest.raises(DataError, match=r"slice 'spoilt' .*not readable as AnnData"):
        build_corpus(config)
    assert not (here / "corpus/manifest.json").exists()


def test_a_slice_that_changed_during_an_unfinished_build_is_read_again(here, simulated_paths):
    mine = [shutil.copy(path, here) for path in simulated_paths]
    (here / "slice_2.h5ad").unlink()
    with pytest.raises(DataError, match=r"slice 'slice_2' .*: no such file"):
        build_corpus(corpus_config(mine, "corpus").model_copy(update={"tolerance": ToleranceConfig(strict=True)}))
    shutil.copy(simulated_paths[2], mine[2])
    shutil.copy(simulated_paths[2], mine[0])
    corpus = build_corpus(corpus_config(mine, "corpus").model_copy(update={"duplicates": "keep"}))
    assert corpus.truth("slice_0").coords_um.tolist() == corpus.truth("slice_2").coords_um.tolist()


def test_a_second_builder_is_refused_with_the_name_of_the_first(here, simulated_paths):
    config = corpus_config(simulated_paths, "corpus")
    claim_folder(here / "corpus", CORPUS_KIND)
    with only_builder(here / "corpus"), pytest.raises(ConfigError, match=rf"found a build in progress, by \S+:{os.getpid()}; expected none"):
        build_corpus(config)
    build_corpus(config)


FILES = ["slices/slice_1/cells.zarr.zip", "sketches/slice_1.safetensors", "gene_tables.json", "gene_vocab.csv", "slices/slice_1/tokens-*.zarr.zip",
         "views/tokens/index.parquet", "views/tokens/shard-*.tar"]  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("fault", ["gone", "cut", "flipped"])
def test_a_file_that_is_not_whole_is_made_again(tiny_corpus, simulated_paths, here, name, fault):
    config = CorpusConfig(**{**tiny_corpus.manifest["config"], "out": "corpus"})
    shutil.copytree(tiny_corpus.folder, here / "corpus")
    [original] = tiny_corpus.folder.glob(name)
    path, data = here / "corpus" / original.relative_to(tiny_corpus.folder), bytearray(original.read_bytes())
    data[-9] ^= 1
    path.unlink() if fault == "gone" else path.write_bytes(data[:-1] if fault == "cut" else data)
    corpus = build_corpus(config, verify=fault == "flipped")
    assert corpus.corpus_id == tiny_corpus.corpus_id
    assert path.read_bytes() == original.read_bytes()


READS = {
    "slices/slice_1/cells.zarr.zip": lambda corpus: corpus.gene_scale("slice_1"),
    "gene_vocab.csv": lambda corpus: corpus.vocab,
    "gene_tables.json": lambda corpus: corpus.gene_tables,
}


@pytest.mark.parametrize("name", READS)
def test_a_corpus_with_a_changed_file_is_refused_when_the_file_is_read(tiny_corpus, tmp_path, name):
    shutil.copytree(tiny_corpus.folder, tmp_path / "copy")
    data = bytearray((tmp_path / "copy" / name).read_bytes())
    data[-9] ^= 1
    (tmp_path / "copy" / name).write_bytes(data)
    with pytest.raises(FormatError, match="Build the corpus again"):
        READS[name](Corpus(tmp_path / "copy"))


def test_the_corpus_id_names_the_content(tiny_corpus, simulated_paths, here):
    other = build_corpus(corpus_config(simulated_paths[:2], "corpus"))
    assert other.corpus_id != tiny_corpus.corpus_id
    assert json.loads((here / "corpus" / "manifest.json").read_text())["corpus_id"] == other.corpus_id


def config_of_foreign_genes(folder, simulated_paths, min_share_of_counts: float):
    """A corpus of one slice most of whose genes nobody knows."""
    table = anndata.read_h5ad(simulated_paths[0])
    table.var_names = [*table.var_names[:5], *(f"unknown_{number}" for number in range(55))]
    table.write_h5ad(folder / "foreign.h5ad")
    floors = {"genes": GeneConfig(min_genes=1, min_share_of_genes=0), "min_share_of_counts": min_share_of_counts}
    return corpus_config([folder / "foreign.h5ad"], "corpus").model_copy(update=floors)


TOO_FEW = r"slice 'foreign' \(.*\): [\d.]+% of its counts are on mapped genes \(unmapped: unknown_\d+.*expected at least 50.0%"


def test_a_slice_with_too_few_mapped_genes_is_refused(here, simulated_paths):
    config = config_of_foreign_genes(here, simulated_paths, 0.0).model_copy(update={"genes": GeneConfig()})
    with pytest.raises(BadSlice, match=r"slice 'foreign' .*: 5 of 60 genes with counts map to human genes .*expected at least 10, and 30%") as caught:
        build_corpus(config)
    assert caught.value.code == "VOCAB"


def test_a_slice_with_too_few_counts_on_mapped_genes_is_refused(here, simulated_paths):
    with pytest.raises(DataError, match=TOO_FEW):
        build_corpus(config_of_foreign_genes(here, simulated_paths, 0.5))


def test_the_share_of_counts_is_checked_for_slices_read_before_a_stop_too(here, simulated_paths, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("corpus.build.make_vocabulary", raise_planted)
        with pytest.raises(RuntimeError, match="planted"):
            build_corpus(config_of_foreign_genes(here, simulated_paths, 0.0))
    with pytest.raises(DataError, match=TOO_FEW):
        build_corpus(config_of_foreign_genes(here, simulated_paths, 0.5))


def raise_planted(**_):
    raise RuntimeError("planted")


def test_two_slices_of_one_name_are_refused(simulated_paths):
    with pytest.raises(ValidationError, match="slice_id 'slice_0' is used twice; expected one name per slice"):
        corpus_config([simulated_paths[0], simulated_paths[0]], "corpus")


def test_a_folder_without_a_finished_corpus_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"found a folder without a SToFM marker; .*Make it with `stofm build CONFIG`"):
        Corpus(tmp_path)
