"""The losses of methods on a batch that never changes, written down as plainly as their networks allow."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from methods._loop import Batch


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


PLAIN = {f.__name__: f for f in (noise_as_targets, deep_infomax, cpc, bigan)}
