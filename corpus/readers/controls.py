"""Control and blank features: what instruments count beside genes, and how it is told from them."""

from __future__ import annotations

import re

import numpy as np

from corpus.slice import BoolArray, StrArray

# Anchored words of the vendors: "NegPrb3", "Blank-12", "BLANK_0070", "antisense_PROKR2"; the gene NEGR1 is none of them.
CONTROL = re.compile(r"(?i)^(neg(prb|probe|control|ative)|systemcontrol|falsecode|blank|unassigned|deprecated|intergenic|antisense|genomiccontrol)")
GENE_TYPES = {"Gene Expression", "Gene"}


def is_control_name(names: StrArray) -> BoolArray:
    """Tell which features are controls by their names, as all vendors spell them."""
    return np.array([CONTROL.match(name) is not None for name in names.tolist()], dtype=bool)
