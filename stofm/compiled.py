"""What numba compiles of a library that does not ask it to keep the result."""

from __future__ import annotations

import warnings
from contextlib import suppress


def keep_umap_compiled() -> None:
    """Let numba keep on disk what it compiles of umap, which else costs every process that draws or clusters by it ten seconds.

    Where no folder can be written, nothing is kept.
    """
    from numba.core.dispatcher import Dispatcher

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # that TensorFlow is not there
        from umap import layouts, umap_

    for function in (*vars(umap_).values(), *vars(layouts).values()):
        if isinstance(function, Dispatcher):
            with suppress(RuntimeError):
                function.enable_caching()
