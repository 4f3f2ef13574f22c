"""Virtual adversarial training: the prediction should hold in the direction in which it is weakest."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.contracts import Backbone, BenchError, DataShape, Model
from methods._apart import ApartLoop
from methods._loop import Batch, State
from methods.parts.adversary import adversarial_direction, divergence
from methods.parts.decay import shrink
from methods.parts.entropy import entropy
from methods.parts.network import classify, inputs
from methods.parts.normalization import unrecorded
from methods.parts.ramps import ramp_up, warm_up
from methods.parts.repetition import restart


@dataclass(frozen=True)
class VirtualAdversarialTraining(ApartLoop):
    """Cross-entropy on the labels plus the divergence of predictions before and after the worst small step.

    Defaults of CIFAR-10 with augmentation (without: epsilon 10; SVHN: 2.5 or 3.5 with it, ``score_norm``, decay
    at 80 of 120 epochs). All unlabeled passes share one dropout and noise, and the labeled pass alone moves the
    running statistics, both as released; perturbed is the network's input (whitened, where it is).

    :param epsilon: length of the step; ``xi``: of the finite difference, where float32 at 3,072 pixels costs a
        third of the first iteration's cosine at the paper's 1e-6, and nothing at 1e-2; ``iterations`` of the
        power method.
    :param weight: of the divergence (Oliver et al. and MixMatch's code .3, with epsilon 6); ``entropy``: of the
        entropy, "VAT+EntMin": 1 (Oliver et al. .1, MixMatch's code .06); 0: none.
    :param order: ``clean_first``: KL(clean || perturbed), the paper's; ``clean_last``: KL(perturbed || clean) as
        the loss (Oliver et al., MixMatch's and S4L's code), where the direction is still found by the former.
    :param ramp: part of the training over which the weight rises, 0: none; ``linear`` (MixMatch's code) or by
        exp(-5 (1 - t)^2) (Oliver et al.).
    :param joint: labeled and unlabeled rows in one forward pass, whose statistics count (Oliver et al.), or not.
    :param score_norm: batch norm on the scores; ``decay``: the part of itself that every kernel loses in a step.
    """

    paper: ClassVar[str] = (
        "Miyato, Maeda, Koyama & Ishii, Virtual Adversarial Training: A Regularization Method for Supervised and"
        " Semi-Supervised Learning, TPAMI 2018"
    )
    distributed: ClassVar[bool] = True

    lr: float = 0.001
    weight_decay: float = 0.0
    batch_size: int = 160
    labeled_batch: int = 32
    everything: bool = True
    optimizer: str = "adam"
    last_beta1: float = 0.5
    schedule: str = "linear"
    drops: tuple[float, ...] = (460 / 500,)
    augment: str = "translate_flip"
    epsilon: float = 8.0
    xi: float = 1e-6
    iterations: int = 1
    weight: float = 1.0
    entropy: float = 0.0
    order: str = "clean_first"
    ramp: float = 0.0
    linear: bool = False
    joint: bool = False
    score_norm: bool = False
    decay: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in {"clean_first", "clean_last"}:
            raise BenchError(f'vat.order must be "clean_first" or "clean_last", not {self.order!r}')

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder and a linear classifier."""
        model = super().build(backbone, shape, generator)
        if self.score_norm and model.head is not None:
            norm = nn.BatchNorm1d(shape.classes, eps=1e-6, momentum=0.01)  # release, layers.py
            model.head = nn.Sequential(model.head, norm)
        return model

    def passes(self, shape: DataShape) -> float:
        """Of unlabeled rows: clean, two thirds for a gradient by the input, perturbed. Joint: of all rows."""
        unlabeled = (1 if self.entropy or self.joint else 1 / 3) + self.iterations * 2 / 3 + 1
        return self.cost(shape, unlabeled if self.joint else 1, unlabeled)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Eq. 8: -mean_L log p(y | x) + alpha mean_U KL(p(x) || p(x + r)), by algorithm 1."""
        x, joint = inputs(model, batch.views[0]), self.joint
        labeled = None if joint else classify(model, x[: self.rows])
        x = x if joint else x[self.rows :]

        def predict(x: Tensor) -> Tensor:
            restart(x.device)
            return classify(model, x)

        # A difference of 1e-6 does not survive bfloat16.
        with torch.autocast(x.device.type, enabled=False):
            taught = torch.is_grad_enabled() and bool(joint or self.entropy)
            with contextlib.nullcontext() if joint else unrecorded(model), torch.set_grad_enabled(taught):
                clean = predict(x)
            with unrecorded(model):
                d = batch.draws().normal(*x.shape[1:])[-len(x) :].to(x)
                step = self.epsilon * adversarial_direction(
                    predict, x, clean, d, xi=self.xi, iterations=self.iterations
                )
        with unrecorded(model):
            perturbed = predict(x + step)
        pair = clean.detach(), perturbed
        smooth = divergence(*(pair if self.order == "clean_first" else pair[::-1]))
        if labeled is None:
            labeled, clean, smooth = clean[: self.rows], clean[self.rows :], smooth[self.rows :]
        rise = warm_up if self.linear else ramp_up
        terms = {
            "class": F.cross_entropy(labeled.float(), batch.targets[: self.rows]),
            "smoothness": self.weight * rise(done / total, self.ramp) * smooth.mean(),
        }
        return terms | ({"entropy": self.entropy * entropy(clean)} if self.entropy else {})

    def adjust(self, optimizer: torch.optim.Optimizer, done: int, total: int) -> None:
        """Adam's first beta falls when the rate begins to."""
        super().adjust(optimizer, done, total)
        if self.schedule == "linear" and self.optimizer == "adam":
            first = self.last_beta1 if self.last_beta1 and done / total >= self.drops[0] else self.betas[0]
            for group in optimizer.param_groups:
                group["betas"] = (first, self.betas[1])

    def after_step(self, model: Model, state: State, batch: Batch, done: int) -> None:
        """Decay apart from the gradient."""
        shrink(model, self.decay)
