"""Damaged jigsaw puzzles: one tile is missing, the others have no color, and all of it is to be made good."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.augment import unit
from bench.contracts import Backbone, DataShape, Draws, Model, Needs, Run, TrainingSet, initialize
from methods._loop import Batch, State
from methods._puzzle import Puzzle
from methods.parts import ab_bins, lab, patch_looks, tile_maker, tiles
from methods.parts.discriminators import fooling_loss, telling_loss
from methods.parts.luma import Luma, luma
from methods.parts.pictures import all_images

_SAMPLE = 64  # images a batch, and batches at most, that quantiles are estimated on


@dataclass(frozen=True)
class DamagedJigsaw(Puzzle):
    """Tell the permutation, make the missing tile, and color the others; the encoder reads luma.

    Puzzles are Noroozi & Favaro's; the weights of the missing tile's two terms those of Pathak et al., CVPR 2016.

    :param inpainting: weight of the missing tile's mean squared error; ``adversarial``: that of fooling the
        discriminator (0: there is none); ``decoder_width``: maps of both next to the pixels.
    :param coloring: weight of the cross-entropy of ab bins; ``quantiles``: per axis, estimated on the training
        images (0: those of a grid by 10 that sRGB reaches); ``finer``: bins a side for each of the last maps'.
    """

    paper: ClassVar[str] = (
        "Kim, Cho, Yoo & Kweon, Learning Image Representations by Completing Damaged Jigsaw Puzzles, WACV 2018"
    )
    from_description: ClassVar[str] = "no code was released; weights, decoder and bins are ours"
    needs: ClassVar[Needs] = Needs(color=True, min_side=48)

    inpainting: float = 0.999
    adversarial: float = 0.001
    decoder_width: int = 64
    coloring: float = 1.0
    quantiles: int = 0
    finer: int = 4

    def build(self, backbone: Backbone, shape: DataShape, generator: torch.Generator) -> Model:
        """The encoder, a classifier on all tiles, a decoder of one, a layer of colors; a discriminator."""
        encoder = backbone.build(generator=generator, in_channels=1, input=Luma())
        bins = self.quantiles**2 or len(ab_bins.gamut())
        colors = nn.Conv2d(encoder.channels[encoder.layers[-1]], bins * self.finer**2, 1)
        initialize(colors, generator)
        tile, puzzle = self.context_free(encoder, generator)
        joint = (self.tile_dim or encoder.dim) * self.grid**2
        parts = {
            "tile": tile,
            "puzzle": puzzle,
            "decoder": tile_maker.TileDecoder(joint, 1, self.tile, self.decoder_width, generator),
            "colors": nn.Sequential(colors, nn.PixelShuffle(self.finer)),
        }
        if self.adversarial:
            parts["judge"] = tile_maker.discriminator(1, self.tile, self.decoder_width, generator)
        return Model(encoder, parts=parts)

    def state(self, model: Model, data: TrainingSet, run: Run) -> State:
        """The permutations (count, tiles) and the centers of the color bins (Q, 2)."""
        centers = self._quantiles(data) if self.quantiles else ab_bins.gamut()
        return super().state(model, data, run) | {"bins": centers.to(run.device, copy=True)}

    def _quantiles(self, data: TrainingSet) -> Tensor:
        shown = itertools.islice(all_images(data.images, data.shape, _SAMPLE), _SAMPLE)
        small = torch.cat([F.adaptive_avg_pool2d(unit(batch), 16) for batch in shown])
        return ab_bins.quantile_bins(lab.to_lab(small, "ab").movedim(1, -1).reshape(-1, 2), self.quantiles)

    def losses(self, model: Model, state: State, batch: Batch, done: int, total: int) -> dict[str, Tensor]:
        """Cross-entropy of the permutation, error and realism of the missing tile, cross-entropy of colors."""
        draws = batch.draws()
        which = draws.integers(self.permutations)
        missing = F.one_hot(draws.integers(self.grid**2), self.grid**2).flatten().bool()
        colored = self._shuffled(batch.views[0], state["permutations"][which], draws)
        whole = model.encoder.input(self._grayed(colored))
        maps = model.encoder.trunk(whole.masked_fill(missing[:, None, None, None], 0.0))
        joint = model.parts["tile"](model.encoder.pool(maps)).view(len(batch), -1)
        terms = {"puzzle": F.cross_entropy(model.parts["puzzle"](joint).float(), which)}
        terms |= self._inpainting(model, joint, whole[missing])
        return terms | {"coloring": self._coloring(model, state["bins"], maps, colored, missing)}

    def _shuffled(self, view: Tensor, orders: Tensor, draws: Draws) -> Tensor:
        """Tiles (N K, 3, s, s) in [0, 1] of puzzles (N, 3, crop, crop): place k shows tile ``orders[:, k]``."""
        return unit(tiles.cut(view, self.corners(orders, draws), self.tile).flatten(0, 1))

    def _grayed(self, colored: Tensor) -> Tensor:
        """All that is shown of tiles: (N K, 1, s, s)."""
        return patch_looks.standardize(luma(colored), self.normalize)

    def _inpainting(self, model: Model, joint: Tensor, wanted: Tensor) -> dict[str, Tensor]:
        made = model.parts["decoder"](joint)
        terms = {"inpainting": self.inpainting * F.mse_loss(made.float(), wanted)}
        if self.adversarial:
            judge = model.parts["judge"]
            terms["adversarial"] = self.adversarial * fooling_loss(judge, made)
            terms["discriminator"] = telling_loss(judge, wanted, made) / 2
        return terms

    def _coloring(self, model: Model, bins: Tensor, maps: Tensor, colored: Tensor, missing: Tensor) -> Tensor:
        """Cells of the shown tiles: the bin of their average color."""
        scores = model.parts["colors"](maps[~missing]).float()
        cells = F.adaptive_avg_pool2d(colored[~missing], scores.shape[2:])
        return self.coloring * F.cross_entropy(scores, ab_bins.nearest_bin(lab.to_lab(cells, "ab"), bins))
