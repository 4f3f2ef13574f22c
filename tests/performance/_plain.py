"""The losses of methods on a batch that never changes, written down as plainly as their networks allow."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from methods._loop import Batch
from methods.parts.hypercolumns import hypercolumns


def noise_as_targets(method, model, batch):
    """No assignment, and targets that lie ready."""
    targets = F.normalize(torch.randn(len(batch), method.dim))

    def loss():
        embedded = F.normalize(model.parts["embedding"](model.encoder(batch)).float())
        return (embedded - targets).square().sum()

    return loss


def deep_infomax(method, model, batch):
    """The local objective by a mask over all pairs; the prior that lies ready."""
    drawn = torch.rand(len(batch), method.dim)
    together = torch.eye(len(batch))[:, :, None]
    encoder, parts = model.encoder, model.parts
    below = list(encoder.trunk.named_children())
    first = [name for name, _ in below].index(method.layer) + 1

    def loss():
        maps = encoder.trunk[:first](encoder.input(batch))
        output = parts["output"](encoder.pool(encoder.trunk[first:](maps)))
        scores = parts["local"](maps.flatten(2).transpose(1, 2), output)
        found = (math.log(2) - F.softplus(-scores)) * together / len(batch)
        mistaken = (F.softplus(scores) - math.log(2)) * (1 - together) / len(batch) / (len(batch) - 1)
        judge, encoded = parts["discriminator"], output.sigmoid()
        told = F.softplus(-judge(drawn)).mean() + F.softplus(judge(encoded.detach())).mean()
        return (mistaken - found).sum() / scores.shape[2] + told - judge(encoded).mean()

    return loss


def cpc(method, model, batch):
    """Patches that are cut already."""
    patches = method.patches(Batch(torch.arange(len(batch)), [batch]))
    count, rows, columns = patches.shape[:3]
    patches = patches.flatten(0, 2).contiguous(memory_format=torch.channels_last)
    places = torch.arange(method.group * rows * columns).view(method.group, rows, columns)
    encoder, parts = model.encoder, model.parts

    def loss():
        z = F.layer_norm(encoder(patches), [encoder.dim]).view(count, rows, columns, -1)
        c = parts["context"](z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).float()
        every = z.float().reshape(-1, method.group * rows * columns, encoder.dim)
        terms = []
        for ahead, predict in enumerate(parts["predictions"], 1 + method.skip):
            asked = predict(c[:, :-ahead]).reshape(len(every), -1, encoder.dim).float()
            own = places[:, ahead:].flatten().repeat(len(every))
            terms.append(F.cross_entropy((asked @ every.transpose(1, 2)).flatten(0, 1), own))
        return sum(terms) / len(terms)

    return loss


def bigan(method, model, batch):
    """The discriminator on both kinds of pairs, once for itself and once for the others."""
    drawn, real = torch.rand(len(batch), method.dim) * 2 - 1, batch.float() / 255
    parts = model.parts

    def loss():
        code, made = parts["code"](model.encoder(batch)).tanh(), parts["generator"](drawn)
        judge = parts["discriminator"].requires_grad_(requires_grad=False)
        deceived = F.softplus(judge(real, code)).mean() + F.softplus(-judge(made, drawn)).mean()
        judge.requires_grad_(requires_grad=True)
        told = F.softplus(-judge(real, code.detach())).mean() + F.softplus(judge(made.detach(), drawn)).mean()
        return told + deceived

    return loss


def maps_of(model, images):
    """The last tap's."""
    last = model.encoder.layers[-1]
    return model.encoder.activations(images, [last])[last]


def tell_pixels_apart(scores):
    """Against classes that never change."""
    rows = scores.permute(0, 2, 3, 1).reshape(-1, scores.shape[1]).float()
    return F.cross_entropy(rows, torch.arange(len(rows)) % scores.shape[1])


def colorization(method, model, batch):
    """Bins that lie ready."""
    return lambda: tell_pixels_apart(model.parts["decoder"](maps_of(model, batch)))


def split_brain(method, model, batch):
    """Each tower on its own, and bins that lie ready."""

    def loss():
        parts = model.encoder.input(batch).split([1, 2], 1)
        for stage in list(model.encoder.trunk)[:-1]:  # the last is a pool above the last tap
            parts = stage.first(parts[0]), stage.second(parts[1])
        ab, lightness = (
            model.parts[name](maps) for name, maps in zip(("predict_ab", "predict_L"), parts, strict=True)
        )
        return tell_pixels_apart(ab) + tell_pixels_apart(lightness)

    return loss


def larsson_colorization(method, model, batch):
    """Places and histograms that never change."""
    places = torch.linspace(0.1, 0.9, 32)[:, None].expand(len(batch), -1, 2)

    def loss():
        maps = model.encoder.activations(batch, model.encoder.layers)
        hidden = model.parts["hidden"](hypercolumns(maps.values(), places))
        classes = torch.arange(len(hidden)) % 32
        return sum(F.cross_entropy(model.parts[name](hidden).float(), classes) for name in ("hue", "chroma"))

    return loss


def context_encoder(method, model, batch):
    """The painter, and the discriminator's three passes: true, made, and made for the painter."""
    judge = model.parts["discriminator"]

    def loss():
        made = model.parts["painter"](model.encoder.trunk(model.encoder.input(batch)))
        error = made.square().mean() - judge(made.detach()).mean() - judge(torch.zeros_like(made)).mean()
        judge.requires_grad_(requires_grad=False)
        fooled = judge(made).mean()
        judge.requires_grad_(requires_grad=True)
        return error + fooled

    return loss


_WRITTEN = (noise_as_targets, deep_infomax, cpc, bigan)
_WRITTEN += (colorization, split_brain, larsson_colorization, context_encoder)
PLAIN = {f.__name__: f for f in _WRITTEN}
