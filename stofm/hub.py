"""Models on the Hugging Face hub: a name there instead of a folder here, and a folder here put there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stofm.errors import ConfigError, one_line

HUB_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


def local_folder(where: str | Path) -> Path:
    """Return the folder of a model: `where` itself, or the copy in the hub's cache of the model ``owner/name[@revision]``.

    A path whose first part is a folder here is never asked for on the hub. The cache and the address of the hub are those of
    huggingface_hub (``HF_HOME``, ``HF_ENDPOINT``); with ``HF_HUB_OFFLINE=1`` only the cache is read.

    Raises
    ------
    ConfigError
        If the hub has no such model, or does not answer and the cache does not hold it.
    """
    name, path = HUB_NAME.fullmatch(str(where)), Path(where)
    if name is None or path.exists() or Path(path.parts[0]).is_dir():
        return path
    from huggingface_hub import snapshot_download

    with _asking(f"model {where}", expected="a folder, or a model on the Hugging Face hub", remedy="Check the name, or fetch the model first."):
        return Path(snapshot_download(name["repo"], revision=name["revision"]))


def push_folder(folder: Path, repo: str, *, private: bool, message: str) -> str:
    """Upload all files of a folder as one commit to ``owner/name``, which is made if need be; returns the address of the commit.

    Who may write is decided by the token of huggingface_hub (``HF_TOKEN``, or ``hf auth login``).

    Raises
    ------
    ConfigError
        If `repo` is no such name, or the hub refuses or does not answer.
    """
    if not (name := HUB_NAME.fullmatch(repo)) or name["revision"]:
        raise ConfigError(f"--repo: found {repo!r}; expected owner/name.")
    from huggingface_hub import HfApi

    api = HfApi()
    with _asking(f"hub {api.endpoint}, model {repo}", expected="to be let in", remedy="Log in with `hf auth login`, or set HF_TOKEN."):
        api.create_repo(repo, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).commit_url)


@contextmanager
def _asking(address: str, *, expected: str, remedy: str) -> Iterator[None]:
    """Turn what may go wrong on the way to the hub into one line."""
    from huggingface_hub.errors import HTTPError, RevisionResolutionError

    try:
        yield
    except (HTTPError, OSError, ValueError, RevisionResolutionError) as error:
        raise ConfigError(f"{address}: {one_line(error)[:200]}; expected {expected}. {remedy}") from error
