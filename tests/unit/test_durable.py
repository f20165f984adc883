"""Files that are whole or absent, and folders that are used for one kind of thing only."""

from __future__ import annotations

import pytest

from stofm.durable import MARKER, claim_folder, read_json, remove, replacing, require_folder, tree_digest, tree_sha256, write_json, write_text
from stofm.errors import ConfigError, FormatError

KIND = "stofm-test/1"


def fail_while_replacing(path, file) -> None:
    """Write half of the new content, then fail."""
    with replacing(path) as aside:
        write_text(aside / file, "half of the new")
        raise RuntimeError("planted")


@pytest.mark.parametrize("file", ["", "file.txt"], ids=["file", "folder"])
def test_an_exception_leaves_what_was_there_and_nothing_beside_it(tmp_path, file):
    write_text(tmp_path / "out" / file, "old")
    with pytest.raises(RuntimeError, match="planted"):
        fail_while_replacing(tmp_path / "out", file)
    assert (tmp_path / "out" / file).read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write_text(tmp_path / "folder" / "only_old.txt", "old")
    with replacing(tmp_path / "folder") as aside:
        write_text(aside / "deep" / "only_new.txt", "new")
    assert list(tree_sha256(tmp_path / "folder")) == ["deep/only_new.txt"]
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_block_that_writes_nothing_replaces_nothing(tmp_path):
    write_text(tmp_path / "file.txt", "old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file.txt"):
        pass
    assert (tmp_path / "file.txt").read_text() == "old"


def test_json_comes_back_and_has_sorted_keys(tmp_path):
    write_json(tmp_path / "new" / "value.json", {"b": [1, 2], "a": 0.1})
    assert read_json(tmp_path / "new" / "value.json") == {"a": 0.1, "b": [1, 2]}
    assert (tmp_path / "new" / "value.json").read_text().index('"a"') < (tmp_path / "new" / "value.json").read_text().index('"b"')


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "No such file"), (b'{"a": 1', "expected a JSON object"), (b"[1]", "found a JSON list"), (b"\xff", "codec can't decode")],
    ids=["missing", "cut off", "list", "no utf-8"],
)
def test_json_that_is_missing_or_damaged_is_named(tmp_path, content, message):
    if content is not None:
        (tmp_path / "value.json").write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_json(tmp_path / "value.json")


@pytest.mark.parametrize("there_before", ["nothing", "empty folder", "own folder", "cut-off write"])
def test_a_new_or_own_folder_is_claimed(tmp_path, there_before):
    path = tmp_path / "out"
    if there_before != "nothing":
        path.mkdir()
    if there_before == "own folder":
        claim_folder(path, KIND)
        write_text(path / "content.txt", "kept")
    if there_before == "cut-off write":
        (path / f".{MARKER}.123.part").write_text("{")
    claim_folder(path, KIND)
    require_folder(path, KIND, made_by="stofm test")
    assert (path / "content.txt").exists() == (there_before == "own folder")


@pytest.mark.parametrize(
    ("there_before", "message"),
    [
        ("a file", "found a file; expected a folder"),
        ("foreign files", "found files that SToFM did not write; expected a new or empty folder"),
        ("another kind", "found a folder of kind 'stofm-other/1'; expected a new or empty folder, or one of kind 'stofm-test/1'"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(tmp_path, there_before, message):
    path = tmp_path / "out"
    if there_before == "a file":
        path.write_text("mine")
    elif there_before == "foreign files":
        write_text(path / "thesis.docx", "mine")
    else:
        claim_folder(path, "stofm-other/1")
    before = tree_sha256(tmp_path)
    with pytest.raises(ConfigError, match=message):
        claim_folder(path, KIND)
    assert tree_sha256(tmp_path) == before


@pytest.mark.parametrize(
    ("there", "message"),
    [("nothing", "no such folder"), ("foreign", "without a SToFM marker"), ("another kind", "kind 'stofm-other/1'")],
)
def test_a_folder_of_a_wrong_kind_is_refused_with_the_command_that_makes_one(tmp_path, there, message):
    if there == "foreign":
        write_text(tmp_path / "in" / "file.txt", "")
    if there == "another kind":
        claim_folder(tmp_path / "in", "stofm-other/1")
    with pytest.raises(ConfigError, match=rf"{message}; expected one of kind 'stofm-test/1'. Make it with `stofm test`"):
        require_folder(tmp_path / "in", KIND, made_by="stofm test")


@pytest.mark.parametrize("change", ["content", "name", "new file"])
def test_the_digest_of_a_folder_sees_every_change(tmp_path, change):
    write_text(tmp_path / "a" / "file.txt", "text")
    before = tree_digest(tmp_path)
    assert tree_digest(tmp_path) == before
    if change == "content":
        write_text(tmp_path / "a" / "file.txt", "Text")
    elif change == "name":
        (tmp_path / "a" / "file.txt").rename(tmp_path / "a" / "other.txt")
    else:
        write_text(tmp_path / "b.txt", "")
    assert tree_digest(tmp_path) != before


def test_removing_a_link_leaves_what_it_points_to(tmp_path):
    write_text(tmp_path / "folder" / "file.txt", "kept")
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert (tmp_path / "folder" / "file.txt").read_text() == "kept"
