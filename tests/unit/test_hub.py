"""A model goes to the hub and comes back the same; a stand-in on this machine speaks the hub's protocol."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from stofm.checkpoint import Model, load_model
from stofm.durable import tree_sha256
from stofm.errors import ConfigError
from stofm.hub import local_folder

REPO = "lab/breast"


class StandIn(BaseHTTPRequestHandler):
    """As much of the hub as an upload and a download ask for; files are kept in `server.commits`, one dictionary a commit."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.headers.get("Authorization") != "Bearer hf_good":
            self.answer({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer({"url": f"{self.server.url}/{REPO}"})
        elif self.path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif self.path == f"/api/models/{REPO}/preupload/main":
            self.answer({"files": [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]})
        elif self.path.startswith(f"/api/models/{REPO}/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"}
            self.server.commits.append(files)
            self.answer({"commitOid": self.oid(), "commitUrl": f"{self.server.url}/{REPO}/commit/{self.oid()}", "success": True})
        else:
            self.answer({"error": f"no {self.path}"}, 404)

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        repo = f"/api/models/{REPO}"
        if path.startswith((f"{repo}/revision/", f"{repo}/tree/")) or path == repo:
            if not self.server.commits or path.split("/")[-1] not in ("breast", "main", self.oid()):
                self.answer({"error": "no such"}, 404, **{"X-Error-Code": "RevisionNotFound" if self.server.commits else "RepoNotFound"})
            elif "/tree/" in path:
                self.answer([{"type": "file", "path": name, "size": len(data), "oid": etag(data)} for name, data in self.files().items()])
            else:
                self.answer({"id": REPO, "sha": self.oid(), "private": False, "tags": [], "downloads": 0, "likes": 0,
                             "siblings": [{"rfilename": name} for name in self.files()]})  # fmt: skip
        elif path.startswith(f"/{REPO}/resolve/"):
            data = self.files()[path.split("/", 5)[5]]
            self.answer(data, ETag=f'"{etag(data)}"', **{"X-Repo-Commit": self.oid()})
        else:
            self.answer({"error": f"no {path}"}, 404, **{"X-Error-Code": "RepoNotFound"})

    do_HEAD = do_GET

    def oid(self) -> str:
        return f"{len(self.server.commits):040x}"

    def files(self) -> dict[str, bytes]:
        return self.server.commits[-1]

    def answer(self, what: object, code: int = 200, **headers: str) -> None:
        data = what if isinstance(what, bytes) else json.dumps(what).encode()
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), "Content-Type": "application/json", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def etag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    server.commits, server.created, server.url = [], {}, f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    monkeypatch.chdir(tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def model(tiny_run) -> Model:
    return load_model(tiny_run / "model")


def test_a_saved_model_is_the_model(model, tmp_path):
    model.save_pretrained(tmp_path / "copy")
    assert tree_sha256(tmp_path / "copy") == tree_sha256(model.folder)
    assert Model.from_pretrained(tmp_path / "copy").weights_sha256 == model.weights_sha256


def test_weights_that_were_changed_are_saved_as_they_are_now(model, tmp_path):
    changed = load_model(model.folder)
    torch.nn.init.zeros_(changed.se2_transformer.type_embedding.weight)
    changed.save_pretrained(tmp_path / "changed")
    loaded = load_model(tmp_path / "changed")
    assert loaded.weights_sha256 != model.weights_sha256
    assert not loaded.se2_transformer.type_embedding.weight.any()


def test_a_pushed_model_comes_back_the_same_under_its_name(model, hub):
    assert model.push_to_hub(REPO, private=True) == f"{hub.url}/{REPO}/commit/{1:040x}"
    assert hub.created["visibility"] == "private"
    back = Model.from_pretrained(REPO)
    assert back.weights_sha256 == model.weights_sha256
    assert tree_sha256(back.folder) == tree_sha256(model.folder)
    assert Model.from_pretrained(f"{REPO}@{1:040x}").weights_sha256 == model.weights_sha256


def test_a_model_that_was_fetched_needs_no_hub(model, hub, monkeypatch):
    model.push_to_hub(REPO)
    first = local_folder(REPO)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert local_folder(REPO) == first


def test_a_name_that_the_hub_does_not_know_is_an_error_in_one_line(hub):
    with pytest.raises(ConfigError, match=r"model lab/lung: .*expected a folder, or a model on the Hugging Face hub") as error:
        load_model("lab/lung")
    assert "\n" not in str(error.value)


def test_a_revision_that_the_hub_does_not_know_is_an_error(model, hub):
    model.push_to_hub(REPO)
    with pytest.raises(ConfigError, match=f"model {REPO}@v9: "):
        load_model(f"{REPO}@v9")


def test_a_push_without_the_right_token_says_what_to_do(model, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(ConfigError, match=r"expected to be let in\. Log in with `hf auth login`"):
        model.push_to_hub(REPO)
    assert not hub.commits


@pytest.mark.parametrize("repo", ["breast", "a/b/c", "lab/breast@v1", "lab/", "../lab"])
def test_a_name_to_push_to_is_owner_and_name(model, repo):
    with pytest.raises(ConfigError, match=r"--repo: found .*; expected owner/name"):
        model.push_to_hub(repo)


def test_a_path_into_a_folder_here_is_never_asked_for_on_the_hub(hub):
    Path("runs").mkdir()
    assert local_folder("runs/mistyped") == Path("runs/mistyped")
    with pytest.raises(ConfigError, match="runs/mistyped: found no such folder"):
        load_model("runs/mistyped")


def test_the_card_says_data_steps_licence_corpus_and_vocabulary(model, tiny_corpus):
    card = (model.folder / "README.md").read_text()
    for words in ("library_name: stofm", tiny_corpus.corpus_id, tiny_corpus.vocab.sha256, "| encoder | 4 |", "| se2 | 4 |", "## Licence", "slice_0"):
        assert words in card


def test_a_damaged_copy_is_refused_like_a_damaged_folder(model, tmp_path):
    from stofm.errors import CheckpointError

    shutil.copytree(model.folder, tmp_path / "damaged")
    (tmp_path / "damaged/gene_vocab.csv").write_text("gene_id,token,median\n")
    with pytest.raises(CheckpointError, match=r"gene_vocab\.csv is missing or changed"):
        Model.from_pretrained(tmp_path / "damaged")
