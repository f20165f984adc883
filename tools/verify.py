"""`stofm verify`."""

from __future__ import annotations

from pathlib import Path

from downstream.embedding import load_embedder
from downstream.verification import verify_embedding
from stofm.durable import require_folder
from stofm.errors import DataError
from tools.console import say, show_error, tracking
from tools.embed import EMBEDDED_KIND

MOST_NAMED = 10


def run_verify(folder: Path, model: Path, *, n_cells: int | None) -> None:
    """Compare every slice of a folder with what the model says now; `DataError` at the end if any differs."""
    require_folder(folder, EMBEDDED_KIND, made_by="stofm embed")
    paths = sorted([*folder.glob("*.h5ad"), *folder.glob("*.zarr")])
    if not paths:
        raise DataError(f"{folder}: found no embedded slice; expected some. Run `stofm embed` first.")
    embedder = load_embedder(model)
    refusals = []
    for path in paths:
        try:
            with tracking(f"{path.stem}: comparing"):
                verdict = verify_embedding(path, embedder, n_cells=n_cells)
            if len(verdict.differing):
                rows = ", ".join(map(str, verdict.differing[:MOST_NAMED].tolist())) + (", ..." if len(verdict.differing) > MOST_NAMED else "")
                raise DataError(f"slice {path.stem!r} ({path}): {len(verdict.differing)} rows differ from what the model says of them ({rows}); "
                                "expected none. Embed it again with --overwrite.")  # fmt: skip
            say(f"{path.stem}: {verdict.n_compared} cells embedded again, all as written")
        except DataError as refusal:
            refusals.append(refusal)
    if len(refusals) == 1:
        raise refusals[0]
    for one in refusals:
        show_error(one)
    if refusals:
        raise DataError(f"{len(refusals)} of {len(paths)} slices differ; expected none. See the line of each above.")
