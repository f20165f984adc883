"""Vocabularies made elsewhere: their genes keep the tokens and medians that a published checkpoint was trained with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from corpus.gene_dictionaries import Number, read_pairs
from corpus.gene_ids import without_version
from corpus.gene_vocab import MASK, PAD, GeneConfig, GeneVocab, read_vocab_rows
from stofm.errors import ConfigError, FormatError, located
from stofm.fields import MASK_TOKEN, N_LEADING_SPECIALS, PAD_TOKEN


def import_gene_vocab(config: GeneConfig) -> GeneVocab:
    """Read the vocabulary that `config` names: one CSV, or Geneformer's dictionaries of tokens, medians and, for people, symbols.

    Raises
    ------
    ConfigError
        If a file is missing, or a dictionary of tokens comes without medians.
    FormatError
        If a file is damaged, asks for code to be executed, or does not make a vocabulary.
    """
    assert config.vocabulary is not None
    path = Path(config.vocabulary)
    if config.medians is None:
        if path.suffix != ".csv":
            raise ConfigError(f"vocabulary {path}: a dictionary of tokens says no medians; expected a table of them too. Set `genes.medians`.")
        gene_ids, tokens, medians, symbols = (column.tolist() for column in read_vocab_rows(path))
        if len(set(gene_ids)) != len(gene_ids):
            raise FormatError(f"vocabulary {path}: found a gene twice; expected each gene once. Drop the second row.")
        with located(f"vocabulary {path}"):
            return vocab_of_tokens(*(dict(zip(gene_ids, column, strict=True)) for column in (tokens, medians, symbols)))
    token_of, median_of = (_numbers(Path(file), setting) for file, setting in ((path, "genes.vocabulary"), (Path(config.medians), "genes.medians")))
    pairs = read_pairs(Path(config.symbols), setting="genes.symbols") if config.symbols else []
    with located(f"vocabulary {path}"):
        return vocab_of_tokens(token_of, median_of, {without_version(str(gene)): symbol for symbol, gene in reversed(pairs)})


def vocab_of_tokens(token_of: Mapping[str, Number], median_of: Mapping[str, Number], symbol_of: Mapping[str, str]) -> GeneVocab:
    """Put genes in the order of their tokens; what has a token and is no gene, and every gap, becomes an entry in angle brackets.

    Raises
    ------
    FormatError
        If a token is not whole, is shared or is that of `<pad>` or `<mask>`, if many lie unused, or if a gene has no positive median.
    """
    for name, expected in ((PAD, PAD_TOKEN), (MASK, MASK_TOKEN)):
        if token_of.get(name, expected) != expected:
            raise FormatError(f"found token {token_of[name]} for {name}; expected {expected}, as the encoder has it. Use another vocabulary.")
    entries = sorted((token, name) for name, token in token_of.items() if name not in (PAD, MASK))
    tokens = [token for token, _ in entries]
    if not entries or tokens[0] < N_LEADING_SPECIALS or len(set(tokens)) < len(tokens) or not all(float(token).is_integer() for token in tokens):
        raise FormatError(f"found tokens {tokens[:3]} ...; expected whole numbers from {N_LEADING_SPECIALS} on, each once. Use another table.")
    if tokens[-1] > N_LEADING_SPECIALS + 2 * len(tokens):
        raise FormatError(f"found {len(tokens)} tokens up to {tokens[-1]}; expected most numbers to be used. Use another table.")
    names = [f"<unused_{token}>" for token in range(N_LEADING_SPECIALS, int(tokens[-1]) + 1)]
    for token, name in entries:
        names[int(token) - N_LEADING_SPECIALS] = name
    genes = [name for name in names if not name.startswith("<")]
    without = [gene for gene in genes if not 0 < float(median_of.get(gene, 0)) < float("inf")]
    if without or not genes:
        raise FormatError(
            f"found {len(genes)} genes, {len(without)} without a positive median {without[:3]}; expected one for each. Use a matching pair."
        )
    medians = np.array([float(median_of[name]) if not name.startswith("<") else 1.0 for name in names])
    return GeneVocab(np.array(names), medians, np.array([symbol_of.get(name, "") for name in names]))


def _numbers(path: Path, setting: str) -> dict[str, Number]:
    """A table of names and numbers; `FormatError` if a value is none."""
    try:
        return {name: float(value) for name, value in read_pairs(path, setting=setting)}
    except ValueError as error:
        raise FormatError(f"gene table {path}: {error}; expected numbers in its second column. Correct `{setting}`.") from error
