"""Pretraining: encoder adaptation, then the SE(2) transformer with masked cell modeling and pairwise distance recovery."""
