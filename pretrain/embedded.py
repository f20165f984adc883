"""The view that the SE(2) transformer reads: a corpus as an encoder embeds it, made once and by all processes together."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from accelerate import Accelerator

from corpus.build import embedded_shards
from corpus.shards import Shard, write_view
from corpus.store import Corpus
from corpus.view import View
from pretrain.callbacks import Callbacks
from pretrain.measure import evaluating
from pretrain.stopping import stop_requests
from stofm.cell_encoder import CellEncoder, embed_cells
from stofm.durable import remove, tree_digest
from stofm.errors import CheckpointError, Stopped
from stofm.weights import tensors_sha256


def embedded_view(
    corpus: Corpus, encoder: CellEncoder, folder: Path, accelerator: Accelerator, callbacks: Callbacks, *, encoder_id: str | None = None
) -> View:
    """Embed the corpus with an encoder, by default the finished one of the run, unless that was done before; every process a share of it.

    Raises
    ------
    CheckpointError
        If the view that stands there is of another encoder or another corpus.
    """
    encoder_id = encoder_id or tree_digest(folder.parent.parent / "cell_encoder")
    made_from = {"encoder": encoder_id, "corpus": corpus.corpus_id}
    if not (folder / "view.json").is_file():
        encoder.to(accelerator.device)

        def shards_of(slice_id: str) -> list[Shard]:
            embed = partial(embed_cells, encoder, cls_token=corpus.vocab.cls_token)
            return embedded_shards(corpus, folder, slice_id, embed, encoder_id=encoder_id)

        with stop_requests() as stop:
            for slice_id in corpus.slice_ids[accelerator.process_index :: accelerator.num_processes]:
                with callbacks.track(f"{slice_id}: cell embeddings"):
                    shards_of(slice_id)
                if stop.came:
                    raise Stopped(f"embedding the corpus: told to stop after slice {slice_id!r}, which is kept. The same command goes on from there.")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            shards = [shard for slice_id in corpus.slice_ids for shard in shards_of(slice_id)]  # all of them stand now
            write_view(folder, shards, made_from=made_from)
        accelerator.wait_for_everyone()
    view = View(folder)
    if view.meta["made_from"] != made_from:
        raise CheckpointError(
            f"view {folder}: found embeddings of another encoder or corpus; expected those of this run. Remove it, and it is made again."
        )
    return view


def refreshed_view(corpus: Corpus, encoder: CellEncoder, views: Path, border: int, step: int, accelerator: Accelerator, callbacks: Callbacks) -> View:
    """Embed the corpus with the encoder as it is before step `border` of the joint stage; gone on from a later `step`, what was made then is read.

    A checkpoint of a later step is written after the view, so the view stands. At the border itself a view of other weights (sums on a GPU come
    out a little different after a stop) is made anew. The newest two are kept: a damaged checkpoint may send the run back by one.
    """
    folder = views / f"joint-{border:08d}"
    if step > border:
        if not (folder / "view.json").is_file():
            raise CheckpointError(
                f"view {folder}: missing; expected the one that step {step} goes on with. Remove the checkpoints after step {border}."
            )
        return View(folder)
    encoder_id = tensors_sha256(encoder.state_dict())
    if accelerator.is_main_process and (folder / "view.json").is_file() and View(folder).meta["made_from"]["encoder"] != encoder_id:
        remove(folder / "view.json")
    accelerator.wait_for_everyone()
    with evaluating(encoder):
        view = embedded_view(corpus, encoder, folder, accelerator, callbacks, encoder_id=encoder_id)
    if accelerator.is_main_process:
        for old in sorted(views.glob("joint-[0-9]*"))[:-2]:
            remove(old)
    return view
