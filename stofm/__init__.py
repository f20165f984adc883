"""SToFM: a multi-scale foundation model for spatial transcriptomics.

This package is the model; it imports nothing until something is asked of it, so that the command line answers at once.
"""

__version__ = "0.1.0"
