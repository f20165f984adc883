"""The page on the format is true: the reader printed there reads a corpus, and its lists name what is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "corpus.md"


def example() -> str:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)[0]


def test_the_reader_of_twenty_lines_reads_every_record_and_slice(tiny_corpus, tmp_path):
    assert len([line for line in example().splitlines() if line and "import" not in line]) <= 20
    assert "corpus." not in re.sub(r"corpus\.md", "", example())
    assert "stofm" not in example().replace("stofm-corpus/1", "")
    (tmp_path / "reader.py").write_text(example())
    done = subprocess.run([sys.executable, "-W", "ignore", "reader.py", tiny_corpus.folder], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [line.split() for line in done.stdout.splitlines()]
    places = tiny_corpus.token_view().places
    assert [line[:4] for line in lines[: len(places)]] == [
        [str(number), place.key, "simulated", str(place.n_cells)] for number, place in enumerate(places)
    ]
    assert [line[0] for line in lines[len(places) :]] == tiny_corpus.slice_ids
    assert [line[3] for line in lines[len(places) :]] == [str(tiny_corpus.truth(name).counts.sum()) for name in tiny_corpus.slice_ids]


def test_the_page_names_every_column_field_and_entry(tiny_corpus):
    page = DOCUMENT.read_text(encoding="utf-8")
    view = tiny_corpus.token_view()
    columns = pq.read_schema(tiny_corpus.folder / "views" / "tokens" / "index.parquet").names
    for name in [*columns, *view.read(0), *view.meta, *tiny_corpus.manifest, *(tiny_corpus.manifest["slices"][0].keys() - {"reader", "genes"})]:
        assert f"`{name}`" in page, name
