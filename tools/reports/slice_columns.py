"""What the cells of an embedded slice may be coloured by: predictions, labels, other columns, clusters, genes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from corpus.slice import FloatArray, StrArray
from downstream.diagnostics import clusters
from stofm.errors import DataError
from stofm.fields import X_STOFM
from tools.reports.points import Column, class_column, number_column

if TYPE_CHECKING:
    from anndata import AnnData

TASKS = {"region": "region", "cell_type": "cell type"}
PREDICTED, LABELS, MEASURED, EMBEDDING, GENES = "Predictions", "Labels", "Other columns", "Embedding", "Genes"
SYMBOL_COLUMNS = ("symbol", "gene_symbol", "gene_name", "feature_name")
CLUSTERS = "stofm_cluster"  # of `stofm cluster`; tables without it are clustered here
MOST_CLASSES = 1000  # of a column that is not a name
DENSE_BYTES = 60_000_000  # that genes may take before they are packed


@dataclass(frozen=True, eq=False)
class Labels:
    """Labels of one task: predicted and true, (n,) str with "" for none, and the confidence of the prediction, (n,); None where absent."""

    task: str
    predicted: StrArray | None
    confidence: FloatArray | None
    true: StrArray | None

    @property
    def best(self) -> StrArray | None:
        """The true labels, else the predicted ones."""
        return self.true if self.true is not None else self.predicted


def labels_of(table: AnnData, task: str) -> Labels:
    """Return what an embedded table says of a task ("region" or "cell_type")."""
    column = f"stofm_{task}"
    label = str(table.uns[column]["label"]) if column in table.uns else task
    confidence = table.obs.get(f"{column}_probability")
    true = _strings(table, label)
    return Labels(task, _strings(table, column), None if confidence is None else np.asarray(confidence, np.float64),
                  true if true is not None and (true != "").any() else None)  # fmt: skip


def columns_of(table: AnnData, labels: Sequence[Labels], *, genes: Sequence[str]) -> list[Column]:
    """Return all columns of a table for the map, in the order in which they are offered.

    Parameters
    ----------
    genes : sequence of str
        Taken first; the rest of the room goes to the genes that vary most.

    Raises
    ------
    DataError
        If one of `genes` is not in the table.
    """
    columns = []
    taken = {"stofm_status"} if table.obs.get("stofm_status", "embedded").eq("embedded").all() else set()
    for one in labels:
        word = TASKS[one.task]
        for name, title, values in ((f"stofm_{one.task}", f"{word}, predicted", one.predicted), (one.task, f"{word}, true", one.true)):
            if values is not None:
                columns.append(_shared_levels(name, title, PREDICTED if name.startswith("stofm_") else LABELS, values, one))
        if one.confidence is not None:
            columns.append(number_column(f"stofm_{one.task}_probability", f"{word}, confidence", PREDICTED, one.confidence))
        if one.predicted is not None and one.true is not None:
            verdict = np.where(one.true == "", "", np.where(one.true == one.predicted, "right", "wrong"))
            columns.append(class_column(f"{one.task}:right", f"{word}, right or wrong", PREDICTED, verdict))
    taken |= {column.name for column in columns}
    for name in table.obs.columns:
        if name not in taken and (column := _other(table, str(name))) is not None:
            columns.append(column)
    if X_STOFM in table.obsm and CLUSTERS not in table.obs:
        columns.append(class_column("cluster:stofm", "cluster of the embedding (k-means)", EMBEDDING, clusters(np.asarray(table.obsm[X_STOFM]))))
    return columns + _genes(table, genes)


def _shared_levels(name: str, title: str, group: str, values: StrArray, labels: Labels) -> Column:
    """True and predicted classes get the same codes, and so the same colours."""
    import pandas as pd

    both = [one for one in (labels.true, labels.predicted) if one is not None]
    levels = sorted(set(np.unique(np.concatenate(both)).tolist()) - {""})
    return class_column(name, title, group, pd.Categorical(values, categories=levels))


def _other(table: AnnData, name: str) -> Column | None:
    """A column of `obs` as it is; None for names of cells and for what has one value only."""
    values = table.obs[name]
    if name.startswith("stofm_"):
        title, group = name.removeprefix("stofm_").replace("_probability_", ": probability of ").replace("_", " "), PREDICTED
    else:
        title, group = name.replace("_", " "), MEASURED
    if values.dtype.kind in "fiu":
        return number_column(name, title, group, values.to_numpy(dtype=np.float64))
    strings = _strings(table, name)
    assert strings is not None
    return class_column(name, title, group, strings) if 1 < len(np.unique(strings)) <= MOST_CLASSES else None


def _genes(table: AnnData, wanted: Sequence[str]) -> list[Column]:
    from scipy.sparse import csc_matrix

    names = gene_symbols(table)
    place = {name: number for number, name in reversed(list(enumerate(names.tolist())))}
    unknown = [name for name in wanted if name not in place]
    if unknown:
        raise DataError(f"--gene: found no gene {unknown[0]!r} among {len(names)}; expected one of the slice, such as {names[0]}. Correct its name.")
    if table.X is None or not table.n_vars:
        return []
    counts = csc_matrix(table.X)
    squares = np.asarray(counts.multiply(counts).mean(axis=0)).ravel()
    means = np.asarray(counts.mean(axis=0)).ravel()
    dispersion = np.divide(squares - means**2, means, out=np.zeros_like(means, dtype=float), where=means > 0)
    room = max(20, DENSE_BYTES // max(1, table.n_obs))
    chosen = [place[name] for name in dict.fromkeys(wanted)]
    chosen += [number for number in np.argsort(-dispersion, kind="stable").tolist() if means[number] > 0 and number not in chosen][
        : room - len(chosen)
    ]
    chosen.sort(key=lambda number: str(names[number]))
    return [number_column(f"gene:{names[number]}:{number}", str(names[number]), GENES, counts[:, [number]].toarray().ravel()) for number in chosen]


def gene_symbols(table: AnnData) -> StrArray:
    """Return (n_genes,) str, names for people."""
    column = next((name for name in SYMBOL_COLUMNS if name in table.var), None)
    names = table.var_names if column is None else table.var[column]
    return np.where(np.asarray(names.astype(str)) == "", table.var_names.astype(str), names.astype(str)).astype(str)


def _strings(table: AnnData, column: str) -> StrArray | None:
    if column not in table.obs:
        return None
    values = table.obs[column]
    return values.astype(object).where(values.notna(), "").astype(str).to_numpy().astype(str)
