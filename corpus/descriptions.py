"""What a corpus says of itself: totals in its manifest, `croissant.json` for catalogues, `DATASHEET.md` for people.

Nothing is in them but what the manifest says, so equal corpora have equal ones.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stofm.durable import file_sha256, write_text

CROISSANT, DATASHEET = "croissant.json", "DATASHEET.md"
UNKNOWN = "not stated"
SLICE_FACTS = ("technology", "species", "tissue", "donor", "license")
INDEX_FIELDS = {  # columns of index.parquet that a catalogue may want, and what they mean
    "ordinal": ("sc:Integer", "Number of the record in the view."),
    "key": ("sc:Text", "Name of the record: its slice and its number there."),
    "slice_id": ("sc:Text", "Slice that the sub-slice was cut from."),
    "shard": ("sc:Text", "Name of the tar file that holds the record."),
    "offset": ("sc:Integer", "Bytes from the start of the shard to the record."),
    "nbytes": ("sc:Integer", "Size of the record."),
    "n_cells": ("sc:Integer", "Cells in the sub-slice."),
    "technology": ("sc:Text", "Technology of the slice."),
    "species": ("sc:Text", "Species of the slice."),
    "tissue": ("sc:Text", "Tissue of the slice."),
    "split": ("sc:Text", "train, validation, test, or empty."),
}
CONTEXT = {
    "@language": "en", "@vocab": "https://schema.org/", "arrayShape": "cr:arrayShape", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "containedIn": "cr:containedIn", "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"}, "dct": "http://purl.org/dc/terms/",
    "description": {"@container": "@language"}, "equivalentProperty": "cr:equivalentProperty", "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract", "field": "cr:field", "fileObject": "cr:fileObject", "fileProperty": "cr:fileProperty", "fileSet": "cr:fileSet",
    "format": "cr:format", "includes": "cr:includes", "isArray": "cr:isArray", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath",
    "key": "cr:key", "md5": "cr:md5", "name": {"@container": "@language"}, "parentField": "cr:parentField", "path": "cr:path",
    "rai": "http://mlcommons.org/croissant/RAI/", "recordSet": "cr:recordSet", "references": "cr:references", "regex": "cr:regex",
    "repeated": "cr:repeated", "replace": "cr:replace", "samplingRate": "cr:samplingRate", "sc": "https://schema.org/",
    "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip


def file_entry(folder: Path, path: Path) -> dict[str, Any]:
    """Return how a manifest names a file: its path in the corpus, its size, its sha256."""
    return {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": file_sha256(path)}


def totals_of(entries: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return slices, cells and sub-slices of a corpus: in all, by technology, by species.

    Parameters
    ----------
    entries : iterable of {n_cells, n_sub_slices, source: {technology, species}}
        The slices of the manifest.
    """
    entries = list(entries)
    totals: dict[str, Any] = {"all": _sums(entries)}
    for fact in ("technology", "species"):
        values = sorted({_fact(entry, fact) for entry in entries})
        totals[f"by_{fact}"] = {value: _sums([entry for entry in entries if _fact(entry, fact) == value]) for value in values}
    return totals


def write_descriptions(folder: Path, manifest: Mapping[str, Any], view: Mapping[str, Any]) -> None:
    """Write `croissant.json` and `DATASHEET.md` beside a manifest; `view` is the content of the token view's `view.json`."""
    write_text(folder / CROISSANT, croissant(manifest, view))
    write_text(folder / DATASHEET, datasheet(manifest, view))


def croissant(manifest: Mapping[str, Any], view: Mapping[str, Any]) -> str:
    """Return the corpus as Croissant 1.1 metadata (JSON-LD)."""
    licences = _licences(manifest)
    index = {
        "@type": "cr:FileObject", "@id": "index", "name": "index.parquet", "description": "A row per record of the token view.",
        "contentUrl": "views/tokens/index.parquet", "contentSize": f"{view['index']['bytes']} B", "sha256": view["index"]["sha256"],
        "encodingFormat": "application/x-parquet",
    }  # fmt: skip
    shards = [
        {
            "@type": "cr:FileObject", "@id": shard["name"], "name": shard["name"],
            "description": f"{shard['n_records']} sub-slices, a safetensors file each.", "contentUrl": f"views/tokens/{shard['name']}",
            "contentSize": f"{shard['bytes']} B", "sha256": shard["sha256"], "encodingFormat": "application/x-tar",
        } for shard in view["shards"]
    ]  # fmt: skip
    truths = [
        {
            "@type": "cr:FileObject", "@id": entry["slice_id"], "name": entry["slice_id"],
            "description": f"{entry['n_cells']} cells: counts, places, labels; an AnnData store, zarr v3 in a zip.",
            "contentUrl": file["path"], "contentSize": f"{file['bytes']} B", "sha256": file["sha256"], "encodingFormat": "application/zip",
        } for entry in manifest["slices"] for file in entry["files"] if file["path"].endswith("/cells.zarr.zip")
    ]  # fmt: skip
    fields = [
        {
            "@type": "cr:Field", "@id": f"sub_slices/{column}", "name": column, "description": meaning, "dataType": kind,
            "source": {"fileObject": {"@id": "index"}, "extract": {"column": column}},
        } for column, (kind, meaning) in INDEX_FIELDS.items()
    ]  # fmt: skip
    value = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.1",
        "name": f"stofm-corpus-{manifest['corpus_id'][:12]}",
        "description": _one_sentence(manifest),
        "version": "1.0.0",
        "license": licences,
        "url": f"urn:sha256:{manifest['corpus_id']}",
        "isLiveDataset": False,
        "distribution": [index, *shards, *truths],
        "recordSet": [{"@type": "cr:RecordSet", "@id": "sub_slices", "name": "sub_slices", "key": {"@id": "sub_slices/key"},
                       "description": "The sub-slices of the token view: where each lies and what it comes from.", "field": fields}],
        "rai:dataCollection": "Measured by the laboratories that the sources name; see DATASHEET.md.",
        "rai:dataPreprocessingProtocol": "Control features removed, genes mapped to human Ensembl ids, places in micrometres, counts raw.",
        "rai:dataLimitations": "Gene panels, segmentation and depth differ between technologies; tissues are represented as the sources have them.",
    }  # fmt: skip
    return json.dumps(value, indent=1) + "\n"


def datasheet(manifest: Mapping[str, Any], view: Mapping[str, Any]) -> str:
    """Return the corpus in words and tables, under the headings of *Datasheets for Datasets* (Gebru et al. 2021)."""
    entries, quarantined = manifest["slices"], manifest["quarantined"]
    totals, dropped = totals_of(entries), _dropped(entries)
    splits = Counter(str(entry["split"]) for entry in entries if entry.get("split"))
    lines = [
        f"# Datasheet of corpus {manifest['corpus_id'][:12]}", "",
        _one_sentence(manifest), "",
        "## Motivation", "",
        "Made with `stofm build` to pretrain and judge models of spatial transcriptomics.", "",
        "## Composition", "",
        *_table(["technology", "slices", "cells", "sub-slices"], ([name, *sums.values()] for name, sums in totals["by_technology"].items())),
        *_table(["species", "slices", "cells", "sub-slices"], ([name, *sums.values()] for name, sums in totals["by_species"].items())),
        f"Training view: {view['n_records']} sub-slices, {view['n_cells']} cells, {len(view['shards'])} shards (view {view['view_id']}).", "",
        "Splits, in slices: " + _listed(f"{name} {n}" for name, n in splits.items()), "",
        "Labels: " + _listed({label for entry in entries for label in entry["labels"]}), "",
        *_table(["slice", *SLICE_FACTS, "cells", "sub-slices", "counts kept"], (
            [one["slice_id"], *(_fact(one, fact) for fact in SLICE_FACTS), one["n_cells"], one["n_sub_slices"],
             f"{one['genes_audit']['share_of_counts_mapped']:.1%}"] for one in entries)),
        "## Collection", "",
        "Every slice was measured and published by others; `manifest.json` names each input by its hash, and what its file says of its source.",
        "",
        "## Preprocessing", "",
        "Control features are removed, symbols and mouse genes mapped to human Ensembl ids (genes that share one are summed), coordinates",
        "converted to micrometres. Counts stay raw. Cells left out: " + _listed(f"{reason} {n}" for reason, n in dropped.items()), "",
        f"Slices set aside: {len(quarantined)}.", "",
        *_table(["slice", "code", "reason"], ([one["slice_id"], one["code"], _cell(one["detail"])] for one in quarantined)),
        "## Uses", "",
        "Pretraining and evaluation; not diagnosis. Results on a slice count only if the slice is not in the corpus: ask with `stofm seen`.", "",
        "## Distribution", "",
        "Licences of the sources: " + ", ".join(_licences(manifest)) + ". The corpus is under all of them, slice by slice.", "",
        "## Maintenance", "",
        f"Corpora are never changed; another content is another corpus_id. This one: `{manifest['corpus_id']}`.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _one_sentence(manifest: Mapping[str, Any]) -> str:
    totals = totals_of(manifest["slices"])
    kinds, everything = ", ".join(totals["by_technology"]), totals["all"]
    return (
        f"{everything['slices']} slices of spatial transcriptomics ({kinds}): {everything['cells']} cells in {everything['sub_slices']} sub-slices."
    )


def _sums(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {"slices": len(entries), "cells": sum(one["n_cells"] for one in entries), "sub_slices": sum(one["n_sub_slices"] for one in entries)}


def _fact(entry: Mapping[str, Any], fact: str) -> str:
    return _cell(str(entry["source"].get(fact) or UNKNOWN))


def _licences(manifest: Mapping[str, Any]) -> list[str]:
    return sorted({_fact(entry, "license") for entry in manifest["slices"]})


def _dropped(entries: Sequence[Mapping[str, Any]]) -> Counter[str]:
    return sum((Counter(entry.get("dropped", {})) for entry in entries), Counter())


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table; none without rows."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return ["| " + " | ".join(head) + " |", "|---" * len(head) + "|", *lines, ""] if lines else []


def _listed(words: Iterable[str]) -> str:
    return (", ".join(sorted(words)) or "none") + "."


def _cell(text: str) -> str:
    """Text that stays in one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "/")
