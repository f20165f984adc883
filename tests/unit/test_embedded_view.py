"""What a corpus takes from an encoder: numbers for every cell, in the order of the cells, and in a view those of one encoder alone."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from corpus.build import embedded_shards
from corpus.scales import ScaleConfig, embedded_records
from corpus.shards import write_view
from pretrain.callbacks import SILENT
from pretrain.embedded import embedded_view
from stofm.errors import CheckpointError, DataError
from stofm.gene_tokens import GeneTokens


def row_less(tokens: GeneTokens) -> np.ndarray:
    return np.ones((len(tokens.lengths) - 1, 256), np.float32)


def row_more(tokens: GeneTokens) -> np.ndarray:
    return np.ones((len(tokens.lengths) + 1, 256), np.float32)


def not_a_number(tokens: GeneTokens) -> np.ndarray:
    embeddings = np.ones((len(tokens.lengths), 256), np.float32)
    embeddings[[3, 5], [0, 9]] = np.nan, np.inf
    return embeddings


@pytest.mark.parametrize("scheme", ["tissue", "published"])
@pytest.mark.parametrize(
    ("embed", "found"),
    [(row_less, r"found \d+ rows; expected \d+, one a cell"), (row_more, r"found \d+ rows; expected \d+, one a cell"),
     (not_a_number, r"found NaN or infinity in 2 of \d+ cells; expected numbers. Check the weights")],
    ids=["row less", "row more", "no numbers"],
)  # fmt: skip
def test_embeddings_that_are_not_one_a_cell_are_refused(embed, found, scheme, tiny_corpus):
    with pytest.raises(DataError, match=f"^cell embeddings: {found}"):
        next(embedded_records(tiny_corpus.gene_scale("slice_1"), embed, ScaleConfig(scheme=scheme)))


def test_the_slice_is_named_and_nothing_of_it_is_kept(tiny_corpus, tmp_path):
    with pytest.raises(DataError, match=r"^slice 'slice_1': cell embeddings: found NaN"):
        embedded_shards(tiny_corpus, tmp_path, "slice_1", not_a_number, encoder_id="of this run")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("made_from", [{"encoder": "another", "corpus": "mine"}, {"encoder": "of this run", "corpus": "another"}], ids=str)
def test_a_view_of_another_encoder_or_corpus_is_refused(made_from, tmp_path):
    write_view(tmp_path, [], made_from=made_from)
    with pytest.raises(CheckpointError, match=r"found embeddings of another encoder or corpus; expected those of this run. Remove it"):
        embedded_view(SimpleNamespace(corpus_id="mine"), None, tmp_path, None, SILENT, encoder_id="of this run")
