"""Files of weights: read by name, and nothing in them is ever executed."""

from __future__ import annotations

import pickle

import pytest
import torch
from published_checkpoint import Code
from safetensors.torch import save_file

from stofm.errors import CheckpointError
from stofm.weights import load_weights, read_weights

WEIGHTS = {"one": torch.arange(300.0), "two": torch.ones(2, 3, dtype=torch.float16)}


@pytest.mark.parametrize("name", ["w.pth", "w.bin", "w.safetensors"])
def test_tensors_come_back_under_their_names(tmp_path, name):
    (save_file if name.endswith("safetensors") else torch.save)(WEIGHTS, tmp_path / name)
    found = read_weights(tmp_path / name)
    assert set(found) == set(WEIGHTS)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in WEIGHTS.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_named_and_not_executed(tmp_path, zipped):
    torch.save({**WEIGHTS, "three": Code(tmp_path / "executed")}, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"w\.pth: it asks for posix\.mkdir to be executed, which was not done"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()


def test_a_plain_pickle_with_code_is_not_executed(tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"three": Code(tmp_path / "executed")}))
    with pytest.raises(CheckpointError, match="it is no readable pickle"):
        read_weights(tmp_path / "w.pth")
    assert not (tmp_path / "executed").exists()


def truncated(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


def tampered(raw: bytes) -> bytes:
    """One bit of one number is another."""
    place = raw.find(torch.arange(300.0).numpy().tobytes()) + 400
    return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("w.pth", truncated, "expected a whole file of weights"),
        ("w.pth", tampered, "does not match its checksum"),
        ("w.pth", lambda raw: b"", "it ends too early"),
        ("w.pth", lambda raw: b"garbage", "no readable pickle"),
        ("w.safetensors", truncated, "expected a whole file of weights"),
        ("w.safetensors", lambda raw: b"", "expected a whole file of weights"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, name, damage, said):
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(WEIGHTS, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=f"{name}: .*{said}"):
        read_weights(path)


@pytest.mark.parametrize(
    ("content", "found"), [([1], "found list"), ({}, "found nothing"), ({"state_dict": WEIGHTS}, "found dict under 'state_dict'")], ids=str
)
def test_what_is_no_set_of_named_tensors_is_refused(tmp_path, content, found):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=f"{found}.*expected tensors with names|{found}; expected tensors with names"):
        read_weights(tmp_path / "w.pth")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"w\.pth: no such file"):
        read_weights(tmp_path / "w.pth")


def test_weights_of_another_shape_are_not_loaded(tmp_path):
    torch.save({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=r"size mismatch.*Use a matching pair"):
        load_weights(torch.nn.Linear(4, 2), tmp_path / "w.pth")
