"""Reading sub-slices at random into a batch, beside the formats and loaders that others train from; the same arrays, per second of CPU.

Question: what does a second of one core deliver, how much of a core do 1,000 sub-slices a second take, and how long is a
seek? Peers that are not installed are reported as not measured (MosaicML MDS: `pip install streaming-community`; litData:
`pip install litdata`; neither belongs to the project, both bring another torch).

    make bench      runs it fully and writes results/loader_cpu_<date>.md
"""

from __future__ import annotations

import gc
import io
import tarfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from report import ratio, take_turns, write_report

from corpus.loader import load
from corpus.shards import deal_records, pack_shard, write_view
from corpus.view import View

Arrays = dict[str, np.ndarray]
OURS, FIRST, NPZ, MDS, LITDATA = "ours", "ours, every record checked", "webdataset over npz", "MosaicML MDS", "litData"
PEERS = {MDS: ("streaming", "streaming-community", 2.0), LITDATA: ("litdata", "litdata", 2.0)}  # module, package, least ratio
NPZ_LEAST, CORES_AT_1000, SEEK_SECONDS = 8.0, 0.5, 0.010
UNCLOSED = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves closing to the garbage collector
BATCH, EMBEDDING_DIM, N_VIRTUAL = 8, 256, 40


@dataclass(frozen=True)
class Size:
    """How much work one run is."""

    n_sub_slices: int
    n_cells: int
    n_tokens: int  # of a cell, on average
    n_rounds: int


FULLY = Size(n_sub_slices=200, n_cells=960, n_tokens=264, n_rounds=7)
TINY = Size(n_sub_slices=24, n_cells=50, n_tokens=20, n_rounds=1)


def sub_slices(size: Size) -> list[Arrays]:
    """Made-up sub-slices with all fields: gene tokens, embeddings, places, virtual cells; 1 MB each at full size."""
    rng, made = np.random.default_rng(0), []
    for _ in range(size.n_sub_slices):
        n = int(size.n_cells * rng.uniform(0.8, 1.2))
        lengths = rng.integers(1, 2 * size.n_tokens, n)
        made.append({
            "n_tokens": lengths.astype(np.uint16), "gene_tokens": rng.integers(2, 20_000, lengths.sum()).astype(np.uint16),
            "cell_embeddings": rng.normal(size=(n, EMBEDDING_DIM)).astype(np.float16), "coords_um": rng.normal(size=(n, 2)).astype(np.float32),
            "rows": np.arange(n, dtype=np.uint32), "virtual_of_cell": rng.integers(0, N_VIRTUAL, n).astype(np.uint16),
            "virtual_coords_um": rng.normal(size=(N_VIRTUAL, 2)).astype(np.float32),
            "virtual_embeddings": rng.normal(size=(N_VIRTUAL, EMBEDDING_DIM)).astype(np.float16),
        })  # fmt: skip
    return made


class Batch:
    """What every loader fills: one buffer per field, used again for every sub-slice."""

    def __init__(self, records: list[Arrays]) -> None:
        longest = {name: max(record[name].size for record in records) for name in records[0]}
        self.buffers = {name: np.empty((BATCH, longest[name]), records[0][name].dtype) for name in longest}
        self.n_bytes = self.n_read = 0

    def take(self, record: Arrays) -> None:
        for name, buffer in self.buffers.items():
            array = record[name]
            buffer[self.n_read % BATCH, : array.size] = array.reshape(-1)
            self.n_bytes += array.nbytes
        self.n_read += 1

    def fill(self, records: Iterable[Arrays]) -> None:
        for record in records:
            self.take(record)


def our_view(folder: Path, records: list[Arrays]) -> View:
    shards = []
    for number, members in enumerate(deal_records({"slice": len(records)}, salt="bench")):
        shards.append(pack_shard(folder, f"shard-{number:05d}", ((name, j, (records[j], len(records[j]["rows"]), 0)) for name, j in members)))
    write_view(folder, shards, made_from={})
    return View(folder)


def our_loader(view: View, batch: Batch, seed: Iterable[int]) -> Callable[[], None]:
    """An epoch in a new order, read ahead by one thread that fills the batch."""
    seeds = iter(seed)

    def epoch() -> None:
        order = np.random.default_rng(next(seeds)).permutation(len(view))
        for _ in load(view, order, batch_size=BATCH, collate=batch.fill):
            pass

    return epoch


def webdataset_npz(folder: Path, records: list[Arrays], batch: Batch) -> Callable[[], None]:
    """The usual way: an .npz per sample, read with webdataset in the order of the tar."""
    import webdataset as wds

    folder.mkdir()
    with tarfile.open(folder / "0.tar", "w") as tar:
        for number, record in enumerate(records):
            buffer = io.BytesIO()
            np.savez(buffer, **record)
            member = tarfile.TarInfo(f"{number:05d}.npz")
            member.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(member, buffer)

    def epoch() -> None:
        for sample in wds.WebDataset(str(folder / "0.tar"), shardshuffle=False, empty_check=False):
            with np.load(io.BytesIO(sample["npz"])) as arrays:
                batch.take(dict(arrays))

    return epoch


def mosaic_mds(folder: Path, records: list[Arrays], batch: Batch) -> Callable[[], None]:
    """MDS with typed arrays, no compression, its own shuffle."""
    from streaming import MDSWriter, StreamingDataset

    columns = {name: f"ndarray:{array.dtype.name}" for name, array in records[0].items()}
    with MDSWriter(out=str(folder), columns=columns, size_limit=2**26) as writer:
        for record in records:
            writer.write(record)
    dataset = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    return lambda: batch.fill(dataset)


def litdata_chunks(folder: Path, records: list[Arrays], batch: Batch) -> Callable[[], None]:
    """litData chunks, read by its dataset in their order, which is its fast path."""
    from litdata import StreamingDataset
    from litdata.streaming.writer import BinaryWriter

    writer = BinaryWriter(str(folder), chunk_bytes=2**26)
    for number, record in enumerate(records):
        writer.add_item(number, record)
    writer.done()
    writer.merge()
    dataset = StreamingDataset(str(folder), shuffle=False)
    return lambda: batch.fill(dataset)


def measure(folder: Path, size: Size) -> tuple[dict[str, list[float]], dict[str, float]]:
    """CPU seconds of an epoch by loader and round, and the figures of ours alone."""
    records = sub_slices(size)
    view, batch = our_view(folder / "ours", records), Batch(records)
    loaders = {OURS: our_loader(view, batch, range(10**6)), NPZ: webdataset_npz(folder / "npz", records, batch)}
    for name, make in ((MDS, mosaic_mds), (LITDATA, litdata_chunks)):
        if find_spec(PEERS[name][0]) is not None:
            loaders[name] = make(folder / name, records, batch)

    def first_epoch() -> None:
        fresh = View(folder / "ours")
        our_loader(fresh, batch, [0])()

    loaders[FIRST] = first_epoch
    expected = sum(array.nbytes for record in records for array in record.values())
    for name, epoch in loaders.items():  # warm, and every loader delivers every byte
        batch.n_bytes = batch.n_read = 0
        epoch()
        assert (batch.n_read, batch.n_bytes) == (len(records), expected), name
    seconds = take_turns(loaders, size.n_rounds)
    gc.collect()
    seeks = seek_seconds(view)
    return seconds, {"seek": float(np.median(seeks)), "longest seek": max(seeks), "cores": 1000 * float(np.median(seconds[OURS])) / len(records)}


def seek_seconds(view: View) -> list[float]:
    """Wall seconds of starts in the middle of an epoch, each to the first record there; the least of three tries, for others use the machine too."""
    order, seconds = np.random.default_rng(1).permutation(len(view)), []
    for start in np.random.default_rng(2).integers(0, len(view), 50):
        tries = []
        for _ in range(3):
            began = time.perf_counter()
            next(load(view, order, start=int(start)))
            tries.append(time.perf_counter() - began)
        seconds.append(min(tries))
    return seconds


@UNCLOSED
def test_bench_runs_tiny(tmp_path: Path) -> None:
    seconds, figures = measure(tmp_path, TINY)
    assert {OURS, FIRST, NPZ} <= set(seconds)
    assert all(len(rounds) == TINY.n_rounds and min(rounds) > 0 for rounds in seconds.values())
    assert figures.keys() == {"seek", "longest seek", "cores"}


@UNCLOSED
@pytest.mark.slow
def test_ours_delivers_more_per_second_of_cpu(tmp_path: Path) -> None:
    seconds, figures = measure(tmp_path, FULLY)
    write_result(seconds, figures)
    assert ratio(seconds, NPZ, OURS) >= NPZ_LEAST
    assert all(ratio(seconds, name, OURS) >= least for name, (_, _, least) in PEERS.items() if name in seconds)
    assert figures["cores"] <= CORES_AT_1000
    assert figures["longest seek"] <= SEEK_SECONDS


def write_result(seconds: dict[str, list[float]], figures: dict[str, float]) -> None:
    n = FULLY.n_sub_slices
    rows = [
        f"| {name} | {n / np.median(rounds):,.0f} | {n / max(rounds):,.0f} to {n / min(rounds):,.0f} | {ratio(seconds, name, OURS):.2f} |"
        for name, rounds in seconds.items()
    ]
    missing = [f"| {name} | not measured: `{package}` is not installed | | |" for name, (_, package, _) in PEERS.items() if name not in seconds]
    lines = [
        "# Reading sub-slices", "",
        "Question: how many sub-slices does a second of CPU deliver into a batch, beside what others train from?",
        f"The same arrays (1 MB a sub-slice), page cache warm, rounds in turn in one process, medians of {FULLY.n_rounds} epochs of {n}; ours in a",
        "new random order every epoch and read ahead by one thread, webdataset and litData in the order of their files, MDS in its own shuffle.", "",
        "| loader | sub-slices per second of CPU | least to most | times the CPU of ours |", "|---|---|---|---|", *rows, *missing, "",
        f"1,000 sub-slices a second take {figures['cores']:.2f} of a core. A seek to any record took {figures['seek'] * 1e3:.1f} ms (median of 50;",
        f"the longest {figures['longest seek'] * 1e3:.1f} ms). Peers are no part of the project: where measured, they were installed beside it.",
    ]  # fmt: skip
    write_report("loader", lines, work=FULLY, packages=["numpy", "webdataset", "safetensors", "xxhash", *_installed_peers()])


def _installed_peers() -> list[str]:
    found = []
    for _, package, _ in PEERS.values():
        try:
            version(package)
        except PackageNotFoundError:
            continue
        found.append(package)
    return found
