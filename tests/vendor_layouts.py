"""Small made-up slices in the files that instruments and their pipelines write: names, columns, units and oddities as in real outputs."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from scipy.io import mmwrite
from scipy.sparse import csc_matrix, csr_matrix

GENES = ("NEGR1", "ACTB", "GAPDH", "CD3E", "NA")  # a gene that looks like a control, and one that looks like nothing


@dataclass(frozen=True, eq=False)
class Measured:
    """What an instrument saw: (n, 5) counts of `GENES`, (n, 2) counts of two controls, (n, 2) places in micrometres, multiples of 0.5."""

    counts: np.ndarray
    controls: np.ndarray
    coords_um: np.ndarray

    @property
    def n_cells(self) -> int:
        return len(self.counts)


def measured(n_cells: int = 40, seed: int = 0) -> Measured:
    rng = np.random.default_rng(seed)
    side = int(np.ceil(n_cells**0.5))
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 2)[:n_cells]
    coords = 100 + 12.0 * grid + rng.integers(-4, 5, grid.shape) / 2
    return Measured(1 + rng.poisson(2, (n_cells, len(GENES))), rng.poisson(0.5, (n_cells, 2)), coords)


@dataclass(frozen=True)
class Layout:
    """One way to write a slice: its technology and what a reader must find in it."""

    technology: str
    write: Callable[[Path, Measured], Path]
    um_per_unit: float
    controls: tuple[str, ...] = ()
    obs_unit: str = "cell"
    settings: dict[str, object] = field(default_factory=dict)


def names_of(n_cells: int) -> list[str]:
    return [f"ACGT{number:012d}-1" for number in range(n_cells)]


def _features(controls: Sequence[str], types: Sequence[str]) -> list[tuple[str, str, str]]:
    genes = [(f"ENSG0000000000{number}", name, "Gene Expression") for number, name in enumerate(GENES)]
    return genes + [(name, name, kind) for name, kind in zip(controls, types, strict=True)]


def write_10x_h5(path: Path, counts: np.ndarray, features: list[tuple[str, str, str]], barcodes: list[str]) -> None:
    by_cell = csr_matrix(counts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs["filetype"] = "matrix"
        matrix = file.create_group("matrix")
        for name, values in {
            "data": by_cell.data.astype("i4"),
            "indices": by_cell.indices.astype("i8"),
            "indptr": by_cell.indptr.astype("i8"),
        }.items():
            matrix[name] = values
        matrix["shape"], matrix["barcodes"] = np.array(counts.shape[::-1], "i4"), np.array(barcodes, "S")
        for name, column in zip(("id", "name", "feature_type", "genome"), [*zip(*features, strict=True), ["GRCh38"] * len(features)], strict=True):
            matrix[f"features/{name}"] = np.array(column, "S")


def write_10x_folder(folder: Path, counts: np.ndarray, features: list[tuple[str, str, str]], barcodes: list[str], *, gz: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "features.tsv", ["\t".join(one) for one in features], gz=gz)
    _write_lines(folder / "barcodes.tsv", barcodes, gz=gz)
    mmwrite(folder / "matrix.mtx", csc_matrix(counts.T), field="integer")
    if gz:
        (folder / "matrix.mtx.gz").write_bytes(gzip.compress((folder / "matrix.mtx").read_bytes()))
        (folder / "matrix.mtx").unlink()


def _write_lines(path: Path, lines: list[str], *, gz: bool = False) -> None:
    data = ("\n".join(lines) + "\n").encode()
    path.with_name(path.name + ".gz" * gz).write_bytes(gzip.compress(data) if gz else data)


def _write_csv(path: Path, header: Sequence[object], rows: Sequence[Sequence[object]], *, quoting: int = csv.QUOTE_MINIMAL) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=quoting)  # type: ignore[arg-type]
        writer.writerows([header, *rows])


XENIUM_CONTROLS = ("NegControlProbe_00003", "UnassignedCodeword_0070")
XENIUM_TYPES = ("Negative Control Probe", "Unassigned Codeword")


def xenium_h5(folder: Path, seen: Measured) -> Path:
    ids = [f"{number:08x}-1".translate(str.maketrans("0123456789abcdef", "abcdefghijklmnop")) for number in range(seen.n_cells)]
    write_10x_h5(folder / "cell_feature_matrix.h5", np.hstack([seen.counts, seen.controls]), _features(XENIUM_CONTROLS, XENIUM_TYPES), ids)
    cells = pd.DataFrame({"cell_id": ids, "x_centroid": seen.coords_um[:, 0], "y_centroid": seen.coords_um[:, 1], "cell_area": 80.0})
    cells.iloc[::-1].to_parquet(folder / "cells.parquet")  # the two files need not agree on an order
    (folder / "transcripts.parquet").write_bytes(b"")
    return folder


def xenium_folder(folder: Path, seen: Measured) -> Path:
    features = _features(("antisense_PROKR2", "BLANK_0070"), ("Negative Control Probe", "Blank Codeword"))
    barcodes = [f"Cell_{number}" for number in range(1, seen.n_cells + 1)]
    write_10x_folder(folder / "cell_feature_matrix", np.hstack([seen.counts, seen.controls]), features, barcodes, gz=True)
    pd.DataFrame({"cell_id": range(1, seen.n_cells + 1), "x_centroid": seen.coords_um[:, 0], "y_centroid": seen.coords_um[:, 1]}).to_csv(
        folder / "cells.csv.gz", index=False
    )
    return folder


def _merscope(folder: Path, seen: Measured, *, counts: str, cells: str, key: tuple[str, str]) -> Path:
    ids = [str(103327291694389284070574461648020091166 + number) for number in range(seen.n_cells)]  # equal as floats
    rows = [[one, *map(int, row)] for one, row in zip(ids, np.hstack([seen.counts, seen.controls]), strict=True)]
    _write_csv(folder / counts, [key[0], *GENES, "Blank-1", "Blank-12"], rows)
    places = [[one, 0, 600.5, x, y] for one, (x, y) in zip(ids, seen.coords_um, strict=True)]
    _write_csv(folder / cells, [key[1], "fov", "volume", "center_x", "center_y"], places[::-1])
    return folder


def merscope_2021(folder: Path, seen: Measured) -> Path:
    return _merscope(folder, seen, counts="Liver1Slice1_cell_by_gene.csv", cells="Liver1Slice1_cell_metadata.csv", key=("", ""))


def merscope_2023(folder: Path, seen: Measured) -> Path:
    return _merscope(folder, seen, counts="cell_by_gene.csv", cells="cell_metadata.csv", key=("cell", "EntityID"))


def merscope_cellpose(folder: Path, seen: Measured) -> Path:
    key = ("cell", "EntityID")
    return _merscope(folder, seen, counts="Cellpose/cellpose_cell_by_gene.csv", cells="Cellpose/cellpose_cell_metadata.csv", key=key)


def cosmx(folder: Path, seen: Measured) -> Path:
    """Two fields of view, whose local places coincide, each with the molecules outside cells as its cell 0."""
    fovs = 1 + (np.arange(seen.n_cells) >= seen.n_cells // 2)
    numbers = [f"{number + 1}" for number in range(seen.n_cells)]
    rows = [[fov, one, *map(int, row)] for fov, one, row in zip(fovs, numbers, np.hstack([seen.counts, seen.controls]), strict=True)]
    _write_csv(
        folder / "Run1_exprMat_file.csv", ["fov", "cell_ID", *GENES, "NegPrb1", "SystemControl3"], [[1, 0, *[99] * 7], *rows, [2, 0, *[99] * 7]]
    )
    global_px = seen.coords_um / 0.12028
    local_px = np.vstack([global_px[fovs == fov] - global_px[fovs == fov].min(axis=0) for fov in (1, 2)])
    places = [[fov, one, 900, *local, *pixels] for fov, one, local, pixels in zip(fovs, numbers, local_px, global_px, strict=True)]
    header = ["fov", "cell_ID", "Area", "CenterX_local_px", "CenterY_local_px", "CenterX_global_px", "CenterY_global_px"]
    _write_csv(folder / "Run1_metadata_file.csv", header, places[::-1])
    return folder


def stereoseq_gef(folder: Path, seen: Measured) -> Path:
    by_cell = csr_matrix(seen.counts)
    n_genes = np.diff(by_cell.indptr)
    cell_type = [("id", "u4"), ("x", "i4"), ("y", "i4"), ("offset", "u4"), ("geneCount", "u2"), ("expCount", "u2"), ("dnbCount", "u2"),
                 ("area", "u2"), ("cellTypeID", "u2"), ("clusterID", "u2")]  # fmt: skip
    cells = np.zeros(seen.n_cells, cell_type)
    cells["id"], (cells["x"], cells["y"]) = np.arange(seen.n_cells) + 7, (seen.coords_um.T / 0.5).astype(int)
    cells["offset"], cells["geneCount"] = by_cell.indptr[:-1], n_genes
    genes = np.zeros(len(GENES), [("geneName", "S32"), ("offset", "u4"), ("cellCount", "u4"), ("expCount", "u4"), ("maxMIDcount", "u2")])
    genes["geneName"] = np.array(GENES, "S")
    entries = np.zeros(by_cell.nnz, [("geneID", "u2"), ("count", "u2")])
    entries["geneID"], entries["count"] = by_cell.indices, by_cell.data
    path = folder / "feature_expression" / "SS200000135TL_D1.cellbin.gef"
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        file.attrs["version"], file.attrs["resolution"] = np.array([2], "u4"), np.array([500], "u4")
        for name, values in {"cell": cells, "gene": genes, "cellExp": entries}.items():
            file[f"cellBin/{name}"] = values
    return folder


def stereoseq_h5ad(folder: Path, seen: Measured) -> Path:
    """As stereopy writes after an analysis: X scaled, raw counts aside."""
    table = anndata.AnnData(
        X=np.log1p(seen.counts.astype(np.float32)) - 1,
        obs=pd.DataFrame(index=[str(number) for number in range(seen.n_cells)]),
        var=pd.DataFrame(index=list(GENES)),
        layers={"raw_counts": csr_matrix(seen.counts.astype(np.float32))},
        obsm={"spatial": (seen.coords_um / 0.5).astype(np.int64)},
        uns={"bin_type": "cell_bins", "bin_size": 1},
    )
    table.write_h5ad(folder / "SS200000135TL_D1.cellbin_1.0.h5ad")
    return folder


def stereoseq_gem(folder: Path, seen: Measured) -> Path:
    """Four DNBs around each cell's centre, two molecules outside of cells."""
    lines = ["#FileFormat=GEMv0.1", "#OffsetX=0", "geneID\tx\ty\tMIDCount\tExonCount\tCellID"]
    for cell, (row, (x, y)) in enumerate(zip(seen.counts, (seen.coords_um / 0.5).astype(int), strict=True)):
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            counts = row - row // 2 - row // 4 if dx == -1 else row // 2 if dx == 1 else row // 4 if dy == -1 else 0 * row
            lines += [f"{gene}\t{x + dx}\t{y + dy}\t{count}\t0\t{cell + 1}" for gene, count in zip(GENES, counts, strict=True)]
    _write_lines(folder / "SS200000135TL_D1.adjusted.cellbin.gem", [*lines, "ACTB\t3\t3\t9\t0\t0", "ACTB\t9\t3\t9\t0\t0"], gz=True)
    return folder


def stereoseq_bins(folder: Path, seen: Measured) -> Path:
    """Molecules of DNBs, no cells."""
    dnbs = (seen.coords_um / 0.5).astype(int)
    rows = [f"{gene}\t{x}\t{y}\t{count}" for row, (x, y) in zip(seen.counts, dnbs, strict=True) for gene, count in zip(GENES, row, strict=True)]
    _write_lines(folder / "SS200000135TL_D1.gem", ["geneID\tx\ty\tMIDCounts", *rows], gz=True)
    return folder


def stereoseq_bin_gef(folder: Path, seen: Measured) -> Path:
    """As `stereoseq_bins`, in HDF5: molecules gene after gene."""
    where, dnbs = np.nonzero(seen.counts.T), (seen.coords_um / 0.5).astype(int)
    genes = np.zeros(len(GENES), [("gene", "S64"), ("offset", "u4"), ("count", "u4")])
    genes["gene"], genes["count"] = np.array(GENES, "S"), np.bincount(where[0], minlength=len(GENES))
    genes["offset"] = np.cumsum(genes["count"]) - genes["count"]
    points = np.zeros(len(where[0]), [("x", "i4"), ("y", "i4"), ("count", "u1")])
    (points["x"], points["y"]), points["count"] = dnbs[where[1]].T, seen.counts.T[where]
    with h5py.File(folder / "SS200000135TL_D1.gef", "w") as file:
        file["geneExp/bin1/gene"], file["geneExp/bin1/expression"] = genes, points
    return folder


VISIUM_SCALES = {"tissue_hires_scalef": 0.075, "tissue_lowres_scalef": 0.0225, "fiducial_diameter_fullres": 304.6, "spot_diameter_fullres": 130.0}


def _visium_places(seen: Measured, um_per_pixel: float) -> list[list[object]]:
    pixels = zip(seen.coords_um / um_per_pixel, names_of(seen.n_cells), strict=True)
    return [[name, 1, 0, 0, y, x] for (x, y), name in pixels] + [["TTTTTTTTTTTTTTTT-1", 0, 7, 7, 1, 1]]  # one outside the tissue


def visium_h5(folder: Path, seen: Measured) -> Path:
    features = _features(("CD3_TotalSeq", "Isotype"), ("Antibody Capture",) * 2)
    write_10x_h5(folder / "outs/filtered_feature_bc_matrix.h5", np.hstack([seen.counts, seen.controls]), features, names_of(seen.n_cells))
    header = ["barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres"]
    _write_csv(folder / "outs/spatial/tissue_positions.csv", header, _visium_places(seen, 0.5))
    (folder / "outs/spatial/scalefactors_json.json").write_text(json.dumps(VISIUM_SCALES))
    return folder


def visium_v1(folder: Path, seen: Measured) -> Path:
    write_10x_folder(folder / "filtered_feature_bc_matrix", seen.counts, _features((), ()), names_of(seen.n_cells), gz=False)
    first, *rest = _visium_places(seen, 0.5)
    _write_csv(folder / "spatial/tissue_positions_list.csv", first, rest)  # without a header
    (folder / "spatial/scalefactors_json.json").write_text(json.dumps(VISIUM_SCALES))
    return folder


def visium_hd(folder: Path, seen: Measured) -> Path:
    cells, pixels = folder / "segmented_outputs", seen.coords_um / 0.25
    barcodes = [f"cellid_{number + 1:09d}-1" for number in range(seen.n_cells)]
    write_10x_h5(cells / "filtered_feature_cell_matrix.h5", seen.counts, _features((), ()), barcodes)
    corners = np.array([[-9, -9], [9, -9], [9, 9], [-9, 9], [-9, -9]])
    outlines = [
        {"type": "Feature", "properties": {"cell_id": number + 1}, "geometry": {"type": "Polygon", "coordinates": [(corners + place).tolist()]}}
        for number, place in enumerate(pixels)
    ]
    (cells / "cell_segmentations.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": outlines[::-1]}))
    (cells / "spatial").mkdir()
    (cells / "spatial/scalefactors_json.json").write_text(json.dumps({"microns_per_pixel": 0.25, "tissue_hires_scalef": 0.1}))
    return visium_hd_bins(folder, seen)


def visium_hd_bins(folder: Path, seen: Measured) -> Path:
    bins = folder / "binned_outputs/square_008um"
    barcodes = [f"s_008um_{number:05d}_00001-1" for number in range(seen.n_cells)]
    write_10x_h5(bins / "filtered_feature_bc_matrix.h5", seen.counts, _features((), ()), barcodes)
    (bins / "spatial").mkdir()
    pixels = {"pxl_row_in_fullres": seen.coords_um[:, 1] / 0.25, "pxl_col_in_fullres": seen.coords_um[:, 0] / 0.25}
    pd.DataFrame({"barcode": barcodes, "in_tissue": 1, **pixels}).to_parquet(bins / "spatial/tissue_positions.parquet")
    (bins / "spatial/scalefactors_json.json").write_text(json.dumps({"microns_per_pixel": 0.25, "bin_size_um": 8.0}))
    return folder


def slideseq_csv(folder: Path, seen: Measured) -> Path:
    beads = [f"TTGGACGTTT{number:04d}" for number in range(seen.n_cells)]
    rows = [[gene, *map(int, counts)] for gene, counts in zip(GENES, seen.counts.T, strict=True)]
    _write_csv(folder / "MappedDGEForR.csv", ["", *beads], rows, quoting=csv.QUOTE_NONNUMERIC)
    places = [[bead, x / 0.647, y / 0.647] for bead, (x, y) in zip(beads, seen.coords_um, strict=True)]
    _write_csv(folder / "BeadLocationsForR.csv", ["barcodes", "xcoord", "ycoord"], places[::-1])
    return folder


def slideseq_txt(folder: Path, seen: Measured) -> Path:
    beads = [f"TTGGACGTTT{number:04d}" for number in range(seen.n_cells)]
    rows = ["\t".join([gene, *map(str, counts)]) for gene, counts in zip(GENES, seen.counts.T, strict=True)]
    _write_lines(folder / "Puck_200115_08.digital_expression.txt", ["\t".join(["GENE", *beads]), *rows], gz=True)
    places = [[bead, x / 0.647, y / 0.647] for bead, (x, y) in zip(beads, seen.coords_um, strict=True)]
    _write_csv(folder / "Puck_200115_08_bead_locations.csv", ["barcode", "xcoord", "ycoord"], places)
    return folder


def _plain(seen: Measured, coords: np.ndarray, key: str) -> anndata.AnnData:
    obs, var = pd.DataFrame(index=names_of(seen.n_cells)), pd.DataFrame(index=list(GENES))
    return anndata.AnnData(X=csr_matrix(seen.counts.astype(np.float32)), obs=obs, var=var, obsm={key: coords})


def curio(folder: Path, seen: Measured) -> Path:
    table = _plain(seen, seen.coords_um / 0.647, "spatial")
    table.obsm["X_spatial"] = table.obsm["spatial"]
    table.write_h5ad(folder / "A0004_043_anndata.h5ad")
    _write_lines(folder / "A0004_043_cluster_assignment.txt", [f"{name}\t0" for name in table.obs_names])
    _write_lines(folder / "A0004_043_Metrics.csv", ["Metric,Value,Category", "Reads,10,Library"])
    return folder


def seekspace(folder: Path, seen: Measured) -> Path:
    """The matrix has a nucleus more than the table of places: one without a unique centre."""
    barcodes, matrix = names_of(seen.n_cells + 1), folder / "Outs_filtered_feature_bc_matrix"
    write_10x_folder(matrix, np.vstack([seen.counts, np.full(len(GENES), 99)]), _features((), ()), barcodes, gz=True)
    places = [f"{name}\t{x / 0.25}\t{y / 0.25}" for name, (x, y) in zip(barcodes, seen.coords_um, strict=False)]
    _write_lines(matrix / "cell_locations.tsv", ["Cell_Barcode\tX\tY", *places[::-1]], gz=True)
    return folder


def stocorpus(folder: Path, seen: Measured) -> Path:
    path = folder / "SToCorpus-88M" / "vz" / "slice.h5ad"
    path.parent.mkdir(parents=True)
    table = _plain(seen, np.column_stack([seen.coords_um, np.zeros(seen.n_cells)]), "X_Spatial_um")
    table.uns["provenance"] = "whatever"
    table.write_h5ad(path)
    return path


LAYOUTS = {
    "xenium h5": Layout("xenium", xenium_h5, 1.0, XENIUM_CONTROLS),
    "xenium folder": Layout("xenium", xenium_folder, 1.0, ("antisense_PROKR2", "BLANK_0070")),
    "merscope 2021": Layout("merscope", merscope_2021, 1.0, ("Blank-1", "Blank-12")),
    "merscope 2023": Layout("merscope", merscope_2023, 1.0, ("Blank-1", "Blank-12")),
    "merscope cellpose": Layout("merscope", merscope_cellpose, 1.0, ("Blank-1", "Blank-12")),
    "cosmx": Layout("cosmx", cosmx, 0.12028, ("NegPrb1", "SystemControl3")),
    "stereoseq gef": Layout("stereoseq", stereoseq_gef, 0.5),
    "stereoseq h5ad": Layout("stereoseq", stereoseq_h5ad, 0.5),
    "stereoseq gem": Layout("stereoseq", stereoseq_gem, 0.5),
    "visium h5": Layout("visium", visium_h5, 0.5, ("CD3_TotalSeq", "Isotype"), obs_unit="spot"),
    "visium v1": Layout("visium", visium_v1, 0.5, obs_unit="spot"),
    "visium_hd": Layout("visium_hd", visium_hd, 0.25),
    "slideseq csv": Layout("slideseq", slideseq_csv, 0.647, obs_unit="bead"),
    "slideseq txt": Layout("slideseq", slideseq_txt, 0.647, obs_unit="bead"),
    "curio": Layout("curio", curio, 0.647, obs_unit="bead"),
    "seekspace": Layout("seekspace", seekspace, 0.25, settings={"um_per_unit": 0.25}),
    "stocorpus": Layout("stocorpus", stocorpus, 1.0),
}
