"""Names, shapes, dtypes and units of every stored or batched array; the rest of the code uses these constants.

Letters: B sub-slices in a batch, N cells of a padded sub-slice (real and virtual), T gene tokens of a cell, G genes,
D width, H heads, K radial functions, C classes, V virtual cells of a slice, n real cells of a sub-slice.
"""

from __future__ import annotations

from typing import Final

EMBEDDING_DIM: Final = 256  # width of every cell embedding and cell representation

# Records of a training view (one sub-slice each).
ROWS: Final = "rows"  # (n,) uint32, rows of the cells in their slice
COORDS_UM: Final = "coords_um"  # (n, 2) float32, micrometres, origin at the centre of the sub-slice
GENE_TOKENS: Final = "gene_tokens"  # (sum of lengths,) uint16 or uint32, cells one after the other
GENE_LEVELS: Final = "gene_levels"  # (sum of lengths,) uint8, how much of its cell's molecules are of each gene (`stofm.gene_tokens`)
N_TOKENS: Final = "n_tokens"  # (n,) uint16, gene tokens of each cell
CELL_EMBEDDINGS: Final = "cell_embeddings"  # (n, 256) float16, unit length
IS_CONTEXT: Final = "is_context"  # (n,) bool, cells of another sub-slice seen as context; only in records that have some
VIRTUAL_OF_CELL: Final = "virtual_of_cell"  # (n,) uint16, the virtual cell that each cell belongs to
VIRTUAL_COORDS_UM: Final = "virtual_coords_um"  # (V, 2) float32, micrometres, origin as COORDS_UM
VIRTUAL_EMBEDDINGS: Final = "virtual_embeddings"  # (V, 256) float32, mean of the cells' embeddings
VIRTUAL_SIZES: Final = "virtual_sizes"  # (V,) uint32, cells of each virtual cell

# Records of an embedded view under `scheme: published` have these instead of COORDS_UM, VIRTUAL_COORDS_UM, IS_CONTEXT.
PUBLISHED_PLACES: Final = "published_places"  # (n, 2) float32, in hundredths of the diagonal of the slice's bounding box, from its middle
PUBLISHED_VIRTUAL_PLACES: Final = "published_virtual_places"  # (V, 2) float32, likewise

# What an embedded AnnData carries.
X_STOFM: Final = "X_stofm"  # obsm, (n_cells, 256) float32, cell representations
X_STOFM_CELL: Final = "X_stofm_cell"  # obsm, (n_cells, 256) float32, cell embeddings (gene scale alone)
STOFM_STATUS: Final = "stofm_status"  # obs, "embedded" or why not; NaN rows otherwise
UNS_STOFM: Final = "stofm"  # uns, the receipt: what made the embedding

# Gene tokens that are not genes; `<cls>` is the last token of a vocabulary.
PAD_TOKEN: Final = 0
MASK_TOKEN: Final = 1
N_LEADING_SPECIALS: Final = 2
