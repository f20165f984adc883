"""A corpus elsewhere: read over http from nginx and from an S3 API, the same records as on this machine; what the network loses is named."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from corpus.integrity import verify
from corpus.loader import load
from corpus.storage import Place
from corpus.store import Corpus
from corpus.stream import stream_view
from corpus.view import View
from stofm.errors import ConfigError, DataError, FormatError
from tools.corpus import run_repair, run_verify

BUCKET = "corpora"
NGINX = """
daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log; worker_processes 1;
events {{ worker_connections 64; }}
http {{ access_log {folder}/access.log; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; {more} }} }}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answering(process: subprocess.Popen, port: int) -> None:
    for _ in range(300):
        assert process.poll() is None, "the server ended"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("no answer in 30 s")


def stop(process: subprocess.Popen) -> None:
    process.terminate()
    process.wait(20)


def serve(root: Path, folder: Path, more: str = ""):
    """Start nginx over a folder; returns the process and the URL."""
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        assert "nginx" not in os.environ.get("STOFM_REQUIRE", ""), "STOFM_REQUIRE names nginx, which is not installed"
        pytest.skip("nginx is not installed (Debian: apt-get install nginx-light)")
    port = free_port()
    (folder / "nginx.conf").write_text(NGINX.format(folder=folder, port=port, root=root, more=more))
    process = subprocess.Popen([nginx, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")])
    answering(process, port)
    return process, f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def readable_corpus(tiny_corpus, tmp_path_factory):
    """A copy of the tiny corpus in a folder that a server under another user may read."""
    root = tmp_path_factory.mktemp("served")
    shutil.copytree(tiny_corpus.folder, root / "tiny")
    for path in [root, *root.parents[:-2], *root.rglob("*")]:
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    return root / "tiny"


@pytest.fixture(scope="module")
def http(readable_corpus, tmp_path_factory):
    process, url = serve(readable_corpus.parent, tmp_path_factory.mktemp("nginx"))
    yield f"{url}/tiny"
    stop(process)


@pytest.fixture(scope="module")
def s3(readable_corpus):
    """The corpus in a bucket of a local S3 API."""
    import fsspec

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "ACCESS_KEY_ID": "a",
            "SECRET_ACCESS_KEY": "b",
            "DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(f"AWS_{name}", value)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        answering(process, port)
        files = fsspec.filesystem("s3")
        files.mkdir(BUCKET)
        files.put(str(readable_corpus), f"{BUCKET}/tiny", recursive=True)
        yield f"s3://{BUCKET}/tiny"
        stop(process)


@pytest.fixture(params=["http", "s3"])
def url(request):
    return request.getfixturevalue(request.param)


def assert_same(found, expected):
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_corpus_elsewhere_is_the_same_corpus(url, tiny_corpus):
    corpus = Corpus(url)
    assert corpus.corpus_id == tiny_corpus.corpus_id
    assert corpus.vocab.sha256 == tiny_corpus.vocab.sha256
    np.testing.assert_array_equal(corpus.truth("slice_1").counts.toarray(), tiny_corpus.truth("slice_1").counts.toarray())
    with pytest.raises(ConfigError, match="found a URL; expected a folder of this machine"):
        corpus.folder  # noqa: B018 - the property raises


def test_records_are_read_by_range_in_any_order(url, tiny_corpus):
    view, here = Corpus(url).token_view(), tiny_corpus.token_view()
    order = np.random.default_rng(0).permutation(len(here))
    for number, found in zip(order, load(view, order, n_threads=3), strict=True):
        assert_same(found[0], here.read(number))


def test_only_the_bytes_of_a_record_are_asked_for(readable_corpus, tmp_path):
    process, url = serve(readable_corpus.parent, tmp_path)
    view = Corpus(f"{url}/tiny").token_view()
    view.read(3)
    stop(process)
    *_, last = (tmp_path / "access.log").read_text().splitlines()
    assert f" 206 {view.places[3].nbytes} " in last


@pytest.mark.parametrize("n_buffered", [0, 100])
def test_shards_are_streamed_whole_and_once(url, tiny_corpus, n_buffered):
    here = tiny_corpus.token_view()
    samples = {sample["__key__"]: sample for sample in stream_view(Corpus(url).token_view(), n_buffered=n_buffered)}
    assert sorted(samples) == sorted(place.key for place in here.places)
    for number, place in enumerate(here.places):
        assert_same({name: array for name, array in samples[place.key].items() if not name.startswith("__")}, here.read(number))


@pytest.mark.parametrize("name", ["manifest.json", "views/tokens/view.json", "views/tokens/shard-00000-0123456789abcdef.tar"])
def test_a_file_that_is_not_there_is_named(url, name):
    with pytest.raises(FormatError, match=rf"/none/{name}: no such file; expected one. Check the address"):
        (Place(url) / "none" / name).read(2, 5)


def test_a_server_without_ranges_is_told_from_damage(readable_corpus, tmp_path):
    process, url = serve(readable_corpus.parent, tmp_path, more="max_ranges 0;")
    view = View(f"{url}/tiny/views/tokens")
    with pytest.raises(FormatError, match=r"shard http.*, record .*: found \d+ bytes where \d+ were asked for.*does not answer range requests"):
        view.read(2)
    stop(process)


def test_a_shard_cut_off_elsewhere_is_noticed(readable_corpus, tmp_path):
    shutil.copytree(readable_corpus / "views" / "tokens", tmp_path / "view")
    (shard,) = (tmp_path / "view").glob("*.tar")
    place = View(tmp_path / "view").places[-1]
    shard.write_bytes(shard.read_bytes()[: place.offset + 100])
    tmp_path.chmod(0o755)
    process, url = serve(tmp_path, tmp_path)
    view = View(f"{url}/view")
    with pytest.raises(FormatError, match=rf"record {place.key}, offset {place.offset}: .*found 100 bytes where {place.nbytes} were asked for"):
        view.read(len(view) - 1)
    with pytest.raises(FormatError, match="expected a whole tar file"):
        list(stream_view(view))
    stop(process)


def test_what_the_network_loses_is_asked_for_again(http, monkeypatch):
    place = Place(http) / "manifest.json"
    files, _ = place._remote
    answers = iter([ConnectionResetError("planted"), TimeoutError(), None])
    original = files.cat_file

    def losing(*args, **kwargs):
        if (answer := next(answers)) is not None:
            raise answer
        return original(*args, **kwargs)

    monkeypatch.setattr(files, "cat_file", losing)
    monkeypatch.setattr("corpus.storage.FIRST_WAIT_SECONDS", 0)
    assert place.read_json()["format"] == "stofm-corpus/1"


def test_a_server_that_is_gone_is_named(monkeypatch):
    monkeypatch.setattr("corpus.storage.FIRST_WAIT_SECONDS", 0)
    url = f"http://127.0.0.1:{free_port()}/tiny"
    with pytest.raises(FormatError, match=rf"{url}/manifest\.json: .*expected an answer in 4 tries. Check the server"):
        Corpus(url)


def test_a_whole_corpus_elsewhere_is_said_to_be_whole(url, tiny_corpus, monkeypatch, capsys):
    monkeypatch.setattr("corpus.storage.BLOCK_BYTES", 2**20 - 1)
    run_verify(url)
    assert f"corpus {url}: whole, id {tiny_corpus.corpus_id[:12]}" in capsys.readouterr().out


def test_damage_elsewhere_is_named_as_on_this_machine(readable_corpus, tmp_path, capsys):
    folder = shutil.copytree(readable_corpus, tmp_path / "tiny")
    first, *_, last = sorted(Corpus(folder).token_view().places, key=lambda place: place.offset)
    shard = folder / "views" / "tokens" / first.shard
    data = bytearray(shard.read_bytes())
    data[first.offset] ^= 4
    shard.write_bytes(data[: last.offset + 100])
    (folder / "gene_vocab.csv").write_text("")
    (folder / "DATASHEET.md").write_bytes(b"\xff")
    (folder / "slices" / "slice_1" / "cells.zarr.zip").unlink()
    here = list(map(str, verify(Corpus(folder))))
    assert [text.partition(", offset")[0] for text in here if "record" in text] == [
        f"views/tokens/{shard.name}: record {place.key}" for place in (first, last)
    ]
    tmp_path.chmod(0o755)
    process, url = serve(tmp_path, tmp_path)
    with pytest.raises(DataError, match=r"damage in 4 files \(named above\); expected none. Copy it to this machine. Run `stofm corpus repair`"):
        run_verify(f"{url}/tiny")
    stop(process)
    assert [line.removeprefix("damaged: ") for line in capsys.readouterr().out.splitlines() if line.startswith("damaged: ")] == here


def test_a_network_that_is_lost_is_not_taken_for_damage(readable_corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("corpus.storage.FIRST_WAIT_SECONDS", 0)
    process, url = serve(readable_corpus.parent, tmp_path)
    corpus = Corpus(f"{url}/tiny")
    stop(process)
    with pytest.raises(FormatError, match=r"expected an answer in 4 tries. Check the server"):
        list(verify(corpus))


def test_a_corpus_elsewhere_is_not_repaired(http):
    with pytest.raises(ConfigError, match=rf"corpus {http}: found a URL; expected a folder of this machine. Copy the corpus first."):
        run_repair(http)


@pytest.mark.parametrize("url", ["carrier-pigeon://corpus"])
def test_a_url_that_nothing_reads_is_refused(url):
    with pytest.raises(ConfigError, match=r"expected a path, or a URL such as https:// or s3://"):
        Corpus(url)
