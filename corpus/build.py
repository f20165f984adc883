"""From a list of slices to a corpus: truth per slice, one vocabulary, gene tokens as training shards, a manifest at the end.

Every step is a task that can be run again (`corpus.steps`), done once its commit record stands (`corpus.commits`). A build
that was stopped anywhere, by anything, goes on when it is started again, and ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from corpus.child import Work
from corpus.commits import Commit, files_of, sweep_unnamed, task_key
from corpus.gene_ids import load_gene_tables
from corpus.gene_vocab import GeneConfig
from corpus.lock import only_builder
from corpus.readers import slice_name
from corpus.scales import EmbedCells, ScaleConfig, embedded_records
from corpus.shards import RecordPlace, write_shards
from corpus.slice import SliceSpec
from corpus.steps import (
    TOKENS,
    TRUTH,
    VERSIONS,
    VIEW,
    VOCABULARY,
    WHOLE_CORPUS,
    Record,
    input_sha256,
    make_tokens,
    make_truth,
    make_view,
    make_vocabulary,
    prepare,
    quarantine,
    quarantine_path,
    standing_quarantine,
    truth_key,
)
from corpus.store import CORPUS_KIND, Corpus
from corpus.tasks import Patience, Task, TaskConfig, n_workers_of, run_tasks
from stofm.config import FrozenModel
from stofm.durable import claim_folder, file_sha256, read_json, remove, sweep, write_json, write_text
from stofm.errors import ConfigError, DataError

Advance = Callable[[str], None]  # names what was finished
Track = Callable[[str, int], AbstractContextManager[Advance]]  # shows what is being done, and of how many things, while its block runs
Report = Callable[[str], None]


class ToleranceConfig(FrozenModel):
    """How many slices may be set aside before the corpus is not finished.

    The defaults suit small corpora, where one slice is a large share; a release says 0.02 and 0.01.
    """

    strict: bool = Field(False, description="No slice may be set aside.")
    max_share_of_slices: float = Field(0.5, ge=0, le=1, description="Largest share of slices set aside.")
    max_share_of_cells: float = Field(0.5, ge=0, le=1, description="Largest share of cells in slices set aside, where their cells could be counted.")


class CorpusConfig(FrozenModel):
    """`stofm build`: which slices, and how they are read."""

    out: str = Field(description="Folder of the corpus.")
    slices: list[SliceSpec] = Field(min_length=1)
    genes: GeneConfig = Field(default_factory=GeneConfig)
    scales: ScaleConfig = Field(default_factory=ScaleConfig)
    min_share_of_counts: float = Field(0.0, ge=0, le=1, description="Slices with a smaller share of counts on mapped genes are refused.")
    tolerance: ToleranceConfig = Field(default_factory=ToleranceConfig)
    tasks: TaskConfig = Field(default_factory=TaskConfig)

    @model_validator(mode="after")
    def _names_differ(self) -> CorpusConfig:
        names = [slice_name(spec) for spec in self.slices]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"slice_id {twice[0]!r} is used twice; expected one name per slice. Set `slice_id`.")
        return self

    @property
    def specs(self) -> dict[str, SliceSpec]:
        return {slice_name(spec): spec for spec in self.slices}

    @property
    def settings(self) -> str:
        """Digest of all that decides the bytes of the corpus, apart from those of its inputs."""
        return self.digest(exclude={"out", "tolerance", "tasks"})


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
        Take in slices whose files changed since the corpus was finished.

    Raises
    ------
    ConfigError
        If the folder holds something else, or a corpus of other settings, or is being built by another process.
    DataError
        If more slices are set aside than `config.tolerance` allows, or a slice of a finished corpus changed.
    EnvironmentFault
        If the machine does not recover in time.
    """
    folder = Path(config.out)
    claim_folder(folder, CORPUS_KIND)
    with only_builder(folder):
        _refuse_other_settings(folder, config)
        return _Build(config, folder, track, report, verify).run(accept_new=accept_new)


class _Build:
    """One build under its lock: the steps in their order, and what they share."""

    def __init__(self, config: CorpusConfig, folder: Path, track: Track, report: Report, verify: bool) -> None:
        self.config, self.folder, self.track, self.report, self.verify = config, folder, track, report, verify
        self.patience = Patience(config.tasks.patience_minutes, report)
        self.was_finished = (folder / "manifest.json").is_file()

    def run(self, *, accept_new: bool) -> Corpus:
        config, folder = self.config, self.folder
        truths, aside = self.truths(accept_new)
        self.require_tolerance(truths, aside)
        vocabulary = self.vocabulary(truths)
        tokens = self.tokens(truths, vocabulary)
        view = self.view(tokens, vocabulary)

        entries = [_entry(truths[name], tokens[name]) for name in truths]
        manifest = {
            "format": CORPUS_KIND,
            "config": config.model_dump(mode="json", exclude={"out", "tolerance", "tasks"}),
            "settings": config.settings,
            "vocabulary_sha256": vocabulary["vocabulary_sha256"],
            "token_view": view["token_view"],
            "slices": entries,
            "quarantined": list(aside.values()),
        }
        manifest["corpus_id"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        if self.was_finished:
            self.report(f"corpus {folder} is complete: {len(entries)} slices")
        else:
            records = [*truths.values(), *tokens.values(), vocabulary, view]
            self.patience.insist("corpus", partial(self.finish, manifest, records))
        return Corpus(folder)

    def truths(self, accept_new: bool) -> tuple[dict[str, Record], dict[str, Record]]:
        """Bring every slice into the corpus; returns the records of those that are in it, and of those set aside."""
        config, folder = self.config, self.folder
        params = {"genes": load_gene_tables(config.genes.tables).release, "min_share_of_counts": config.min_share_of_counts}
        specs = config.specs
        hashes = self.hashes({name: spec for name, spec in specs.items() if _was_read(folder, name)})
        records: dict[str, Record] = {}
        changed = []
        for name, found in hashes.items():
            key = truth_key(specs[name], found, params) if found else None
            record = standing_quarantine(folder, name, key) or (Commit(folder, name, TRUTH).standing(key, verify=self.verify) if key else None)
            if record is not None:
                records[name] = record
            elif self.was_finished and (old := Commit(folder, name, TRUTH).read()) is not None and old["input_sha256"] != found:
                changed.append(name)
        if changed and not accept_new:
            raise DataError(f"slice {changed[0]!r}: its file changed since corpus {folder} was built. "
                            "Choose another `out`, remove the corpus, or take it in with --accept-new.")  # fmt: skip
        tasks = [Task(name, self.work(make_truth, folder=folder, spec=spec, tables=config.genes.tables, params=params))
                 for name, spec in specs.items() if name not in records]  # fmt: skip
        for task, outcome in self.run_tasks("reading slices", tasks):
            if outcome.fault is None:
                records[task.name] = outcome.result
            else:  # its child did not live to say so
                spec = specs[task.name]
                known = {"slice_id": task.name, "path": spec.path, "input_sha256": _hash_if_there(spec), "n_in": None}
                records[task.name] = quarantine(folder, spec, outcome.fault, params, known)
        in_order = {name: records[name] for name in specs}
        return ({name: record for name, record in in_order.items() if "code" not in record},
                {name: record for name, record in in_order.items() if "code" in record})  # fmt: skip

    def vocabulary(self, truths: dict[str, Record]) -> Record:
        """Find the genes that get a token, from all slices together."""
        genes = self.config.genes
        inputs = {"file": _hash_of(genes.vocabulary)} if genes.vocabulary else {name: record["truth_sha256"] for name, record in truths.items()}
        key = task_key(VOCABULARY, VERSIONS[VOCABULARY], inputs, {"min_cells": genes.min_cells})
        arguments = {"folder": self.folder, "names": list(truths), "genes": genes, "key": key}
        return self.whole_corpus("gene vocabulary", VOCABULARY, key, make_vocabulary, arguments)

    def tokens(self, truths: dict[str, Record], vocabulary: Record) -> dict[str, Record]:
        """Encode every slice and cut it into sub-slices."""
        scales = self.config.scales
        keys = {name: task_key(TOKENS, VERSIONS[TOKENS], {"truth": record["truth_sha256"], "vocabulary": vocabulary["vocabulary_sha256"]},
                               scales.model_dump(mode="json")) for name, record in truths.items()}  # fmt: skip
        standing = {name: Commit(self.folder, name, TOKENS).standing(key, verify=self.verify) for name, key in keys.items()}
        tasks = [Task(name, self.work(make_tokens, folder=self.folder, name=name, scales=scales, key=keys[name]))
                 for name, record in standing.items() if record is None]  # fmt: skip
        made = {task.name: _result(outcome) for task, outcome in self.run_tasks("gene tokens", tasks)}
        return {name: standing[name] or made[name] for name in truths}

    def view(self, tokens: dict[str, Record], vocabulary: Record) -> Record:
        """Write the index of the training shards."""
        key = task_key(VIEW, VERSIONS[VIEW], {name: record["task_key"] for name, record in tokens.items()}, {})
        arguments = {"folder": self.folder, "names": list(tokens), "vocabulary_sha256": vocabulary["vocabulary_sha256"], "key": key}
        return self.whole_corpus("index of the shards", VIEW, key, make_view, arguments)

    def finish(self, manifest: dict[str, Any], records: Iterable[Record]) -> None:
        """Leave what the records name and nothing else; then the manifest, which makes the corpus whole."""
        named = [path for record in records for path in [*files_of(self.folder, record), Commit(self.folder, record["name"], record["step"]).path]]
        sweep(self.folder)
        sweep_unnamed(self.folder, [*named, *(quarantine_path(self.folder, record["slice_id"]) for record in manifest["quarantined"])])
        write_text(self.folder / "config.yaml", self.config.to_yaml())
        write_json(self.folder / "manifest.json", manifest)

    def hashes(self, specs: dict[str, SliceSpec]) -> dict[str, str | None]:
        """Return the sha256 of inputs that were read before: sizes and times prove nothing, bytes do. None: it is gone."""
        with (
            self.track("checking inputs", len(specs)) if specs else nullcontext(lambda _: None) as advance,
            ThreadPoolExecutor(n_workers_of(self.config.tasks, len(specs) or 1)) as pool,
        ):
            found: dict[str, str | None] = {}
            for name, digest in zip(specs, pool.map(_hash_if_there, specs.values()), strict=True):
                found[name] = digest
                advance(name)
            return found

    def run_tasks(self, what: str, tasks: Sequence[Task]) -> Iterable[tuple[Task, Any]]:
        """Run tasks that are due; a finished corpus is unfinished from here on."""
        if not tasks:
            return
        if self.was_finished:
            remove(self.folder / "manifest.json")
            self.was_finished = False
        sweep(self.folder)
        with self.track(what, len(tasks)) as advance:
            for task, outcome in run_tasks(tasks, self.config.tasks, self.patience):
                advance(task.name)
                yield task, outcome

    def work(self, function: Callable[..., Record], **arguments: Any) -> Work:
        return Work(function, arguments, shared=partial(prepare, self.config.genes.tables))

    def whole_corpus(self, what: str, step: str, key: str, function: Callable[..., Record], arguments: dict[str, Any]) -> Record:
        """Do a step of all slices together, unless its record stands."""
        record = Commit(self.folder, WHOLE_CORPUS, step).standing(key, verify=self.verify)
        for _, outcome in self.run_tasks(what, [Task(what, self.work(function, **arguments))] if record is None else []):
            record = _result(outcome)
        assert record is not None
        return record

    def require_tolerance(self, truths: dict[str, Record], aside: dict[str, Record]) -> None:
        """Raise `DataError` if too much was set aside, with each reason reported."""
        tolerance = self.config.tolerance
        n_aside, n_all = sum(record["n_in"] or 0 for record in aside.values()), len(truths) + len(aside)
        n_cells = n_aside + sum(record["n_in"] for record in truths.values())
        too_many = len(aside) > tolerance.max_share_of_slices * n_all or n_aside > tolerance.max_share_of_cells * n_cells
        if not aside or (truths and not too_many and not tolerance.strict):
            return
        if len(aside) == 1:
            raise DataError(next(iter(aside.values()))["detail"])
        for record in aside.values():
            self.report(record["detail"])
        raise DataError(f"{len(aside)} of {n_all} slices were set aside (each named above), more than `tolerance` allows; expected fewer. "
                        "Mend or remove them.")  # fmt: skip


def _refuse_other_settings(folder: Path, config: CorpusConfig) -> None:
    manifest = folder / "manifest.json"
    if manifest.is_file() and read_json(manifest)["settings"] != config.settings:
        raise ConfigError(f"output {folder}: found a corpus of other settings; expected these ones. Choose another `out`, or remove it.")


def _entry(truth: Record, tokens: Record) -> Record:
    """What the manifest says of a slice: its records, without what only a build needs."""
    inner = {"task_key", "step", "name", "places", "path"}
    both = {**truth, **tokens, "files": truth["files"] + tokens["files"]}
    return {field: value for field, value in both.items() if field not in inner}


def _was_read(folder: Path, name: str) -> bool:
    return Commit(folder, name, TRUTH).path.is_file() or quarantine_path(folder, name).is_file()


def _hash_if_there(spec: SliceSpec) -> str | None:
    return input_sha256(spec) if Path(spec.path).exists() else None


def _hash_of(path: str) -> str | None:
    return file_sha256(Path(path)) if Path(path).is_file() else None


def _result(outcome: Any) -> Record:
    if outcome.fault is not None:
        raise DataError(outcome.fault.detail)
    return outcome.result


def embedded_shards(corpus: Corpus, folder: Path, slice_id: str, embed_cells: EmbedCells, *, encoder_id: str) -> list[RecordPlace]:
    """Write the shards of one slice for the SE(2) transformer, unless they stand already; see `embedded_records`."""
    commit = folder / "commits" / f"{slice_id}.json"
    made_from = {"corpus": corpus.corpus_id, "encoder": encoder_id}
    if commit.is_file() and (found := read_json(commit))["made_from"] == made_from:
        return [RecordPlace(**place) for place in found["places"]]
    places = write_shards(folder, slice_id, embedded_records(corpus.gene_scale(slice_id), embed_cells, corpus.scales))
    write_json(commit, {"made_from": made_from, "places": [asdict(place) for place in places]})
    return places
