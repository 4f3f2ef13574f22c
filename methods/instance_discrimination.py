"""Every image is a class of its own; instead of a weight vector, its remembered embedding stands for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import Backbone, BenchError, DataShape, Model, Run, TrainingSet
from methods._loop import Batch, Loop, State
from methods.parts import heads
from methods.parts.memory_bank import new_bank, remember, scores
from methods.parts.nce import estimate_constant, nce_loss


@dataclass(frozen=True)
class InstanceDiscrimination(Loop):
    """Tell each training image from all others by its embedding on the unit sphere; defaults are ImageNet's.

    The proximal term is in the paper (Eq. 9, 10) and absent from its release: off by default.

    :param softmax: ``nce`` with ``negatives`` noise samples; ``nonparametric``: exact, over the whole bank;
        ``parametric``: a linear layer over all images, the paper's baseline.
    :param bank_momentum: of a memory entry; ``proximal``: weight of the distance to the last embedding.
    :param feature_norm: an affine-free batch norm before the unit sphere; short trainings need it.
    """

    paper: ClassVar[str] = (
        "Wu, Xiong, Yu & Lin, Unsupervised Feature Learning via Non-Parametric Instance Discrimination, CVPR 2018"
    )
    distributed: ClassVar[bool] = True

    lr: float = 0.03
    weight_decay: float = 1e-4
    batch_size: int = 256
    schedule: str = "step"
    drops: tuple[float, ...] = (0.6, 0.8)
    augment: str = "resized_crop"
    scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, ...] = (0.4, 0.4, 0.4, 0.4)
    gray: float = 0.2
    dim: int = 128
    temperature: float = 0.07
    negatives: int = 4096
    softmax: str = "nce"
    bank_momentum: float = 0.5
    proximal: float = 0.0
    feature_norm: bool = False

    def __post_init__(self) -> None:
        if self.softmax not in {"nce", "nonparametric", "parametric"}:
            raise BenchError(f"softmax must be nce, nonparametric or parametric, not {self.softmax!r}")

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder, a linear embedding, and for the parametric baseline one weight vector per image."""
        encoder = backbone.build(generator=generator)
        embedding = heads.linear(encoder.dim, self.dim, generator, std=encoder.dim**-0.5)
        if self.feature_norm:
            embedding.append(nn.BatchNorm1d(self.dim, affine=False))
        parts: dict[str, nn.Module] = {"embedding": embedding}
        if self.softmax == "parametric":
            parts["classes"] = heads.linear(self.dim, shape.count, generator, std=self.dim**-0.5)
        return Model(encoder, parts=parts)

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """The memory bank (N, dim) and NCE's constant Z (0 until the first step)."""
        bank = new_bank(len(data), self.dim, run.generator("memory bank"))
        return {"bank": bank.to(run.device), "constant": torch.zeros((), device=run.device)}

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 2 (nonparametric), Eq. 7 (nce), Eq. 1 (parametric), and the proximal term of Eq. 9."""
        (view,) = batch.views
        embedded = model.parts["embedding"](model.encoder(view))
        with torch.autocast(
            view.device.type, enabled=False
        ):  # scores over a temperature are not for bfloat16
            vectors = F.normalize(embedded.float())
            batch.kept["vectors"] = vectors.detach()
            terms = {self.softmax: self._softmax(model, state, batch, vectors)}
            if self.proximal:
                moved = (vectors - state["bank"][batch.index]).square().sum(1).mean()
                terms["proximal"] = self.proximal * moved
        return terms

    def _softmax(self, model: Model, state: State, batch: Batch, vectors: Tensor) -> Tensor:
        if self.softmax == "parametric":
            return F.cross_entropy(model.parts["classes"](vectors) / self.temperature, batch.index)
        bank: Tensor = state["bank"]
        if self.softmax == "nonparametric":
            return F.cross_entropy(vectors @ bank.T / self.temperature, batch.index)
        drawn = batch.draws().integers(len(bank), self.negatives)
        positive = (vectors * bank[batch.index]).sum(1) / self.temperature
        negative = scores(bank, vectors, drawn) / self.temperature
        estimate = batch.averaged(estimate_constant(positive, negative, len(bank)))
        batch.kept["constant"] = torch.where(state["constant"] > 0, state["constant"], estimate)
        return nce_loss(positive, negative, batch.kept["constant"], len(bank))

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """Remember the embeddings; Z stays what the first batch made it."""
        remember(state["bank"], batch.index, batch.kept["vectors"], self.bank_momentum)
        if "constant" in batch.kept:
            state["constant"].copy_(batch.kept["constant"])
