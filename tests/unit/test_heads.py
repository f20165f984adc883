"""Heads: calibration by what was held out, sets that cover, cells that are unlike, alarms, smoothing, older files, fine-tuning."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from anndata import AnnData

from corpus.readers import read_table
from corpus.slice import SliceSpec
from downstream.calibration import at_temperature, calibrate
from downstream.embedding import embed, load_embedder
from downstream.finetune import FinetuneConfig
from downstream.heads import HeadConfig, fit_head, load_head, save_head
from downstream.novelty import fit_novelty
from downstream.predict import PredictConfig, predict_head, smooth
from downstream.probes import ProbeConfig
from stofm.errors import ConfigError, DataError
from stofm.fields import EMBEDDING_DIM, UNS_STOFM, X_STOFM
from stofm.se2_transformer import SE2Transformer

OLD_HEAD = Path(__file__).parents[1] / "formats" / "v1" / "head"


def embedded_table(seed: int, *, n: int = 400, spread: float = 3.0) -> AnnData:
    """Three regions as stripes of tissue, each around a corner of the embedding; `spread` hides them."""
    rng = np.random.default_rng(seed)
    coords = rng.uniform(0, 300, (n, 2))
    region = (coords[:, 0] // 100).astype(int)
    table = AnnData(np.zeros((n, 1), np.float32))
    table.obsm["spatial"] = coords
    table.obsm[X_STOFM] = (np.eye(EMBEDDING_DIM)[region] * 4 + rng.normal(size=(n, EMBEDDING_DIM)) * spread / 4).astype(np.float32)
    table.obs["region"] = np.array(["a", "b", "c"])[region]
    table.uns[UNS_STOFM] = {"weights_sha256": "w" * 64, "slice": json.dumps({"spatial_key": "spatial"})}
    return table


@pytest.fixture(scope="module")
def head():
    return fit_head({f"slice_{seed}": embedded_table(seed) for seed in range(2)}, "region", label="region")


@pytest.fixture(scope="module")
def noisy_proba():
    """Probabilities of four classes, right for about three cells in four; the true classes."""
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 4000)
    scores = np.eye(4)[true] * 1.5 + rng.normal(size=(4000, 4))
    return np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), true


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.99])
def test_prediction_sets_hold_the_true_label_as_often_as_asked(coverage, noisy_proba):
    proba, true = noisy_proba
    calibration = calibrate(proba[:2000], true[:2000])
    sets = calibration.sets(calibration.apply(proba[2000:]), coverage=coverage)
    assert sets[np.arange(2000), true[2000:]].mean() == pytest.approx(coverage, abs=0.03)


def test_prediction_sets_are_never_empty(noisy_proba):
    proba, true = noisy_proba
    calibration = calibrate(proba, true)
    calibrated = calibration.apply(proba)
    sets = calibration.sets(calibrated, coverage=0.3)
    np.testing.assert_array_equal(sets, np.eye(4, dtype=bool)[calibrated.argmax(axis=1)])


def test_few_held_out_cells_cannot_promise_much(noisy_proba):
    proba, true = noisy_proba
    assert calibrate(proba[:9], true[:9]).sets(proba, coverage=0.95).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_spoiled_probabilities_is_found(temperature):
    rng = np.random.default_rng(1)
    scores = rng.normal(size=(8000, 3)) * 2
    proba = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    true = (rng.uniform(size=(8000, 1)) > proba.cumsum(axis=1)).sum(axis=1)
    assert calibrate(at_temperature(proba, 1 / temperature), true).temperature == pytest.approx(temperature, rel=0.1)


def test_cells_unlike_those_of_the_fit_are_novel():
    rng = np.random.default_rng(2)
    y = np.arange(600) % 3
    x = np.eye(5)[y] * 4 + rng.normal(size=(600, 5))
    novelty = fit_novelty(x[:300], y[:300], 3)
    assert novelty.score(x[300:]).mean() == pytest.approx(0.5, abs=0.1)
    assert (novelty.score(x[300:] + 30) == 1).all()
    assert np.isnan(novelty.score(np.full((2, 5), np.nan))).all()


def test_a_head_is_calibrated_by_blocks_it_did_not_see(head):
    assert head.calibration.n_cells == 800
    assert head.places == "cell"
    assert head.shares.sum() == pytest.approx(1)


def test_a_prediction_says_label_set_probabilities_and_novelty(head):
    table = embedded_table(5)
    table.obsm[X_STOFM][3] = np.nan
    found = predict_head(head, table, "slice_5")
    assert found.scores.macro_f1 > 0.9
    assert found.labels[3] == ""
    obs = table.obs
    assert np.isnan(obs["stofm_region_novelty"].iloc[3])
    assert obs["stofm_region_set"].iloc[3] == ""
    covered = [label in of_cell.split("|") for label, of_cell in zip(obs["region"], obs["stofm_region_set"], strict=True)]
    assert np.mean(covered) > 0.85
    assert "stofm_region_raw" not in obs
    assert found.alarms == []


def test_abstaining_keeps_the_raw_prediction_beside(head):
    table = embedded_table(6, spread=3.5)
    found = predict_head(head, table, "slice_6", PredictConfig(min_confidence=0.9, max_novelty=0.99))
    confidence = table.obs["stofm_region_probability"].to_numpy()
    np.testing.assert_array_equal(found.labels == "", (confidence < 0.9) | (table.obs["stofm_region_novelty"] > 0.99))
    assert 0 < (found.labels == "").sum() < table.n_obs
    assert (table.obs["stofm_region_raw"] == found.raw).all()
    predict_head(head, table, "slice_6")
    assert "stofm_region_raw" not in table.obs


def test_smoothing_mends_cells_that_differ_from_their_surroundings(head):
    noisy = embedded_table(7, spread=8.0)
    plain, smoothed = (predict_head(head, noisy, "slice_7", PredictConfig(smooth_neighbors=k)) for k in (0, 8))
    assert smoothed.scores.accuracy > plain.scores.accuracy
    np.testing.assert_array_equal(smoothed.raw, plain.labels)


def test_smoothing_leaves_cells_without_a_prediction_out():
    proba = np.array([[1.0, 0.0], [np.nan, np.nan], [0.0, 1.0]])
    smoothed = smooth(proba, np.array([[0.0, 0], [1, 0], [2, 0]]), 1)
    np.testing.assert_allclose(smoothed, [[0.5, 0.5], [np.nan, np.nan], [0.5, 0.5]])


def test_predictions_that_collapse_raise_an_alarm(head):
    table = embedded_table(8)
    table.obsm[X_STOFM][:] = np.random.default_rng(0).normal(size=(400, EMBEDDING_DIM)) * 0.01
    table.obsm[X_STOFM][:5, :2] += 50  # a few cells far away move the mean of the slice
    (alarm,) = predict_head(head, table, "slice_8").alarms
    assert alarm.startswith("predictions collapse: ")


def test_classes_the_head_never_saw_are_named(head):
    table = embedded_table(9)
    table.obs.loc[table.obs["region"] == "c", "region"] = "d"
    found = predict_head(head, table, "slice_9")
    assert found.alarms == ["true labels hold classes that the head never saw: d; they count as missed."]
    assert found.scores.per_class.loc["d", "recall"] == 0


def test_labels_that_are_nan_take_no_part():
    table = embedded_table(0)
    table.obs["region"] = table.obs["region"].astype(object)
    table.obs.loc[table.obs_names[::2], "region"] = np.nan
    assert fit_head({"one": table}, "region", label="region").calibration.n_cells == 200


def test_a_column_without_any_label_is_refused():
    table = embedded_table(0)
    table.obs["region"] = np.nan
    with pytest.raises(DataError, match="found 0 classes"):
        fit_head({"one": table}, "region", label="region")


def test_spots_are_refused_by_a_cell_type_head():
    table = embedded_table(0)
    head = fit_head({"one": table}, "cell_type", label="region")
    spots = embedded_table(1)
    spots.uns["provenance"] = {"technology": "10x Visium (55 um spots)"}
    with pytest.raises(DataError, match="slice 'two': its places are spots; expected cells"):
        predict_head(head, spots, "two")


@pytest.mark.parametrize("kind", ["linear", "mlp", "knn"])
def test_a_saved_head_says_the_same(kind, tmp_path):
    config = HeadConfig(probe=ProbeConfig(kind=kind))
    head = fit_head({f"slice_{seed}": embedded_table(seed) for seed in range(2)}, "region", label="region", config=config)
    save_head(tmp_path / "head", head)
    first, second = embedded_table(3), embedded_table(3)
    predict_head(head, first, "x")
    predict_head(load_head(tmp_path / "head", "region"), second, "x")
    assert first.obs.equals(second.obs)


def test_a_head_of_the_first_format_still_predicts():
    head = load_head(OLD_HEAD, "region")
    table = embedded_table(4)
    table.uns[UNS_STOFM]["weights_sha256"] = head.weights_sha256
    assert predict_head(head, table, "old").scores.macro_f1 > 0.9
    assert "stofm_region_set" not in table.obs
    with pytest.raises(ConfigError, match="found no calibration"):
        predict_head(head, table, "old", PredictConfig(max_novelty=0.9))


def embedded_by(embedder, paths) -> dict[str, AnnData]:
    """The slices of these files, embedded."""
    specs = [SliceSpec(path=str(path)) for path in paths]
    return {Path(spec.path).stem: embed(read_table(spec), embedder, spec) for spec in specs}


@pytest.fixture(scope="module")
def tuning(tiny_run, simulated_paths):
    """A model and two slices that it embedded."""
    embedder = load_embedder(tiny_run / "model", device="cpu")
    return embedder, embedded_by(embedder, simulated_paths[::2])


CHANGED = {"last": {"layers.1"}, "all": {"layers.0", "layers.1", "embedding_layer", "type_embedding"}, "lora": {"layers.0", "layers.1"}}


@pytest.mark.parametrize("depth", CHANGED)
def test_fine_tuning_changes_what_was_asked_and_is_kept(depth, tuning, tmp_path):
    embedder, slices = tuning
    before = {name: value.clone() for name, value in embedder.model.se2_transformer.state_dict().items()}
    config = HeadConfig(finetune=FinetuneConfig(depth=depth, epochs=2, lr=1e-3))
    head = fit_head(slices, "region", label="region", config=config, embedder=embedder)
    assert all((value == before[name]).all() for name, value in embedder.model.se2_transformer.state_dict().items())
    parts = {".".join(name.split(".")[: 2 if name.startswith("layers") else 1]) for name in head.delta}
    assert parts >= CHANGED[depth] if depth == "all" else parts == CHANGED[depth]
    save_head(tmp_path / "head", head)
    name, table = next(iter(slices.items()))
    first, second = table.copy(), table.copy()
    predict_head(head, first, name, embedder=embedder)
    predict_head(load_head(tmp_path / "head", "region"), second, name, embedder=embedder)
    assert first.obs.equals(second.obs)
    untuned = table.copy()
    predict_head(replace(head, delta={}), untuned, name)
    assert not first.obs["stofm_region_probability"].equals(untuned.obs["stofm_region_probability"])
    with pytest.raises(ConfigError, match="Name its folder with --model"):
        predict_head(head, table.copy(), name)


def test_fine_tuning_fits_what_embeddings_alone_do_not(tuning, simulated_paths):
    """Either a type of the first half or a place in the first region, but not both: no linear head can say that. The transformer is at random."""
    torch.manual_seed(0)
    model = replace(tuning[0].model, se2_transformer=SE2Transformer(tuning[0].model.se2_transformer.config).eval())
    embedder = replace(tuning[0], model=model)
    tables = embedded_by(embedder, simulated_paths[::2])
    for table in tables.values():
        types, regions = (table.obs[label].astype("category").cat.codes for label in ("cell_type", "region"))
        table.obs["either"] = np.where((types < types.max() / 2) ^ (regions == 0), "one", "both or none")

    def score(config: HeadConfig) -> float:
        head = fit_head(tables, "region", label="either", config=config, embedder=embedder)
        return float(np.mean([predict_head(head, table.copy(), name, embedder=embedder).scores.macro_f1 for name, table in tables.items()]))

    assert score(HeadConfig(finetune=FinetuneConfig(depth="all", patience=20))) > score(HeadConfig()) + 0.04
