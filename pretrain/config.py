"""`stofm train`: what is trained on what, for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from stofm.cell_encoder import CellEncoderConfig
from stofm.config import FrozenModel
from stofm.se2_transformer import SE2TransformerConfig


class OptimConfig(FrozenModel):
    """AdamW with warm-up and cosine decay."""

    lr: float = Field(5e-4, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="Share of the steps over which the rate rises.")
    clip_norm: float = Field(1.0, gt=0)


class StageConfig(FrozenModel):
    """What both stages share. A step sees `n_micro_batches` micro-batches, divided among the processes."""

    epochs: float = Field(1.0, gt=0, description="Passes over the corpus.")
    max_steps: int | None = Field(None, ge=1, description="End earlier.")
    n_micro_batches: int = Field(1, ge=1, description="Micro-batches a step, over all processes; a multiple of their number.")
    optim: OptimConfig = Field(default_factory=OptimConfig)


class EncoderStageConfig(StageConfig):
    """Encoder adaptation: masked gene modeling and a contrastive loss over two passes of every cell.

    The passes differ in which genes are hidden, and in dropout where the encoder has any.
    """

    cells_per_micro_batch: int = Field(128, ge=2, description="Cells of one sub-slice, compared with one another by the contrastive loss.")
    tokens_per_micro_batch: int = Field(65_536, ge=1, description="Fewer cells where they are long, to stay below this many gene tokens.")
    mask_rate: float = Field(0.15, gt=0, lt=1, description="Share of gene tokens hidden, drawn anew for each of the two passes.")
    temperature: float = Field(0.05, gt=0)
    mgm_weight: float = Field(1.0, ge=0)
    contrastive_weight: float = Field(1.0, ge=0)


class SE2StageConfig(StageConfig):
    """SE(2) stage: masked cell modeling, pairwise distance recovery and tissue context, the encoder frozen."""

    sub_slices_per_micro_batch: int = Field(1, ge=1)
    mask_rate: float = Field(0.12, gt=0, lt=1, description="Share of real cells whose embedding is hidden.")
    keep_rate: float = Field(0.03, ge=0, lt=1, description="Share of real cells that are predicted though visible.")
    move_rate: float = Field(0.12, gt=0, lt=1, description="Share of real cells that are moved.")
    move_sigma: float = Field(5.0, gt=0, description="Spread of the move, in units of the local spacing of cells.")
    mcm_weight: float = Field(1.0, ge=0)
    pdr_weight: float = Field(0.1, ge=0)
    context_weight: float = Field(1.0, ge=0, description="Of recovering from every cell what lies around it; 0: not asked for, as published.")
    context_um: list[PositiveFloat] = Field([50.0, 150.0, 500.0, 1500.0], description="Reaches at which virtual cells make a cell's context.")


class PretrainConfig(FrozenModel):
    """`stofm train`: a corpus in, a model out."""

    corpus: str = Field(description="Folder that `stofm build` made.")
    out: str = Field(description="Folder of the run; the model will be in its `model/`.")
    seed: int = 0
    cell_encoder: CellEncoderConfig = Field(default_factory=CellEncoderConfig)
    cell_encoder_folder: str | None = Field(None, description="Start from this encoder (cell_bert/, cell_proj); the corpus must have its vocabulary.")
    se2_transformer: SE2TransformerConfig = Field(default_factory=SE2TransformerConfig)
    encoder_stage: EncoderStageConfig | None = Field(default_factory=EncoderStageConfig, description="null: the encoder stays as it starts.")
    se2_stage: SE2StageConfig = Field(default_factory=SE2StageConfig)
    precision: Literal["no", "bf16"] = Field("no", description="no: fp32.")
    log_every: int = Field(10, ge=1, description="Steps.")
    save_every: int = Field(100, ge=1, description="Steps between checkpoints.")
    n_checkpoints: int = Field(2, ge=1, description="Checkpoints kept.")
