"""`stofm train`: what is trained on what, for how long."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat

from stofm.cell_encoder import CellEncoderConfig
from stofm.config import FrozenModel
from stofm.se2_transformer import SE2TransformerConfig


class OptimConfig(FrozenModel):
    """AdamW; the rate rises, and falls to a tenth: along a cosine, or late and straight after it stood still (warm-up, stable, decay)."""

    lr: float = Field(5e-4, gt=0)
    schedule: Literal["cosine", "wsd"] = "cosine"
    decay_share: float = Field(0.2, gt=0, le=1, description="Share of the steps over which the rate falls (wsd).")
    weight_decay: float = Field(0.01, ge=0)
    warmup_share: float = Field(0.05, ge=0, lt=1, description="Share of the steps over which the rate rises.")
    clip_norm: float = Field(1.0, gt=0)


class StageConfig(FrozenModel):
    """What all stages share. A step sees `n_micro_batches` micro-batches, divided among the processes."""

    epochs: float = Field(1.0, gt=0, description="Passes over the corpus.")
    max_steps: int | None = Field(None, ge=1, description="End earlier.")
    n_micro_batches: int = Field(1, ge=1, description="Micro-batches a step, over all processes; a multiple of their number.")
    optim: OptimConfig = Field(default_factory=OptimConfig)
    compile: bool = Field(False, description="Through torch.compile; pays on GPUs and long runs.")


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
    own_weight: float = Field(
        1.0, ge=0, description="Of reading a visible cell's own embedding off its representation; 0: not asked for, as published."
    )
    displacement_weight: float = Field(0.0, ge=0, description="Of predicting how moved cells were moved; asks for `geometry: directional`.")

    @property
    def n_contexts(self) -> int:
        """Embeddings that are read off the representation of a cell: of its surroundings, and its own."""
        return (1 + len(self.context_um) if self.context_weight else 0) + (self.own_weight > 0)


class JointStageConfig(StageConfig):
    """Joint stage: the cell encoder trained through the SE(2) transformer, by the objectives of the SE(2) stage with its settings."""

    encoder_lr_share: float = Field(0.1, gt=0, le=1, description="Rate of the encoder over that of the transformer.")
    tokens_per_chunk: int | None = Field(
        16_384,
        ge=1,
        description="Cells of a sub-slice are embedded so many gene tokens at a time, computed again for the gradient; null: all at once.",
    )
    refresh_every: int | None = Field(
        None, ge=1, description="Steps after which virtual cells are made anew of the encoder's weights; null: an epoch."
    )


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
    joint_stage: JointStageConfig | None = Field(None, description="null: the encoder stays frozen to the end.")
    precision: Literal["no", "bf16"] = Field("no", description="no: fp32.")
    sharding: Literal["none", "fsdp2"] = Field(
        "none", description="Of several processes each holds the whole model (none: DDP), or an equal part of weights, gradients and AdamW (fsdp2)."
    )
    log_every: int = Field(10, ge=1, description="Steps.")
    save_every: int = Field(100, ge=1, description="Steps between checkpoints.")
    n_checkpoints: int = Field(2, ge=1, description="Newest checkpoints kept of a stage, beside the one with the best validation loss.")
    n_validation: int = Field(32, ge=0, description="Units of validation slices whose losses are taken at every checkpoint; 0: none.")
    watch_every: int = Field(
        100, ge=1, description="Steps between looks at the embeddings: effective rank, spread, and an alarm where they collapse."
    )
    probe_every: int = Field(0, ge=0, description="Steps between probes of labelled validation slices; 0: none.")
    trackers: list[Literal["wandb", "mlflow"]] = Field([], description="Log to these too, beside JSON lines and TensorBoard; they must be installed.")

    @property
    def stages(self) -> dict[str, StageConfig]:
        """Settings of the stages of this run, by their names, in their order."""
        stages = {"encoder_stage": self.encoder_stage, "se2_stage": self.se2_stage, "joint_stage": self.joint_stage}
        return {name: stage for name, stage in stages.items() if stage is not None}
