"""Locality of heads: what is smooth is told from what differs between neighbours, and held-out tissue says which of them counts."""

import numpy as np
import pytest

from downstream.locality import LEAST_SHARE, choose_locality, feature_scale, local_share
from downstream.probes import Probe, ProbeConfig, fit_probe

N_BLOCKS, N_EACH, N_SIGNALS, N_NOISE = 20, 30, 4, 60


def tissue(follows: str, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cells in blocks of tissue: features that are smooth and others that are not, labels that follow one kind, and the blocks."""
    draws = np.random.default_rng(seed)
    blocks = np.repeat(np.arange(N_BLOCKS), N_EACH)
    smooth = draws.normal(size=(N_BLOCKS, N_NOISE if follows == "own" else N_SIGNALS))[blocks]
    own = draws.normal(size=(len(blocks), N_NOISE if follows == "smooth" else N_SIGNALS))
    labels = np.array(["a", "b", "c"])[{"smooth": smooth, "own": own}[follows][:, :3].argmax(axis=1)]
    features = np.hstack([smooth, own]) + 0.3 * draws.normal(size=(len(blocks), N_SIGNALS + N_NOISE))
    return features.astype(np.float32), labels, blocks


def probe_of(follows: str, **settings: object) -> Probe:
    features, labels, blocks = tissue(follows)
    return fit_probe([(features, labels)], ProbeConfig(**settings), [blocks], localities=(0.0, -1.0, 1.0))  # type: ignore[arg-type]


@pytest.mark.parametrize(("follows", "expected"), [("smooth", -1.0), ("own", 1.0)])
def test_held_out_tissue_says_what_counts(follows, expected):
    assert probe_of(follows).config.locality == expected


@pytest.mark.parametrize("follows", ["smooth", "own"])
def test_what_was_chosen_finds_more_in_tissue_that_was_not_seen(follows):
    features, labels, _ = tissue(follows, seed=1)
    found = [
        (one.classes[one.predict_proba(features).argmax(axis=1)] == labels).mean() for one in (probe_of(follows), probe_of(follows, locality=0.0))
    ]
    assert found[0] > found[1] + 0.03


def test_a_named_locality_is_kept_and_no_blocks_mean_none():
    assert probe_of("own", locality=-0.5).config.locality == -0.5
    features, labels, _ = tissue("own")
    assert fit_probe([(features, labels)], ProbeConfig(), localities=(1.0, -1.0)).config.locality == 0.0


def test_the_order_of_cells_and_names_of_blocks_do_not_matter():
    features, labels, blocks = tissue("smooth")
    order, names = np.random.default_rng(2).permutation(len(blocks)), np.random.default_rng(3).permutation(N_BLOCKS) + 7
    probe, again = (
        probe_of("smooth"),
        fit_probe([(features[order], labels[order])], ProbeConfig(), [names[blocks[order]]], localities=(0.0, -1.0, 1.0)),
    )
    assert again.config.locality == probe.config.locality
    np.testing.assert_allclose(again.scale, probe.scale, rtol=1e-5)
    np.testing.assert_allclose(again.predict_proba(features), probe.predict_proba(features), atol=2e-3)


def test_the_share_is_one_for_noise_and_least_for_what_is_the_same_in_a_block():
    _, _, blocks = tissue("smooth")
    noise = np.random.default_rng(0).normal(size=(len(blocks), 1))
    values = np.hstack([noise, np.sin(blocks)[:, None] * 5, np.full_like(noise, 3)])
    values -= values.mean(axis=0)
    values[4] = np.nan
    share = local_share(values, blocks)
    assert share[0] == pytest.approx(1, abs=0.1)
    assert share[1:].tolist() == [LEAST_SHARE, 1]
    np.testing.assert_allclose(local_share(values * 10, blocks), share)
    assert local_share(values, np.zeros(len(blocks), int))[:2] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("locality", [-1.0, 0.0, 2.0])
def test_scaled_features_keep_their_mean_square(locality):
    x = np.random.default_rng(0).normal(size=(500, 6)) * np.arange(1, 7)
    scaled = x / feature_scale(x, np.geomspace(0.01, 1, 6), locality)
    assert (scaled.std(axis=0) ** 2).mean() == pytest.approx(1)
    if locality:
        assert (np.diff(scaled.std(axis=0)) * locality > 0).all()


def test_one_group_leaves_the_first():
    x, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    assert choose_locality(x, y, np.zeros(40, int), np.ones(3), (0.0, 1.0), l2=0.01, balanced=True, seed=0) == 0.0


def test_a_class_of_one_group_does_not_stop_the_choice():
    features, labels, blocks = tissue("smooth")
    labels = np.where(blocks == 3, "only here", "elsewhere")
    assert fit_probe([(features, labels)], ProbeConfig(), [blocks], localities=(0.0, -1.0)).config.locality in (0.0, -1.0)
