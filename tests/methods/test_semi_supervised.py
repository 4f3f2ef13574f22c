"""The semi-supervised methods against independent computations, and where their gradients go."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bench.backbones import _whitening
from bench.backbones._whitening import Recipe, Whitening
from bench.contracts import BenchError, Draws, Images
from methods._loop import Batch, _Feed
from methods.entropy_minimization import EntropyMinimization
from methods.ict import InterpolationConsistency
from methods.mean_teacher import MeanTeacher
from methods.mixmatch import MixMatch, sharpen
from methods.mixup import Mixup
from methods.parts import ema, teacher
from methods.parts.adversary import adversarial_direction, divergence, unit
from methods.parts.decay import shrink
from methods.parts.entropy import entropy
from methods.parts.mixing import mix, partners, shares
from methods.parts.network import classify, inputs
from methods.parts.normalization import unrecorded
from methods.parts.repetition import restart
from methods.pi_model import PiModel
from methods.pseudo_label import PseudoLabel
from methods.s4l import SelfSupervisedSemi
from methods.temporal_ensembling import TemporalEnsembling
from methods.vat import VirtualAdversarialTraining

CLASSES, ROWS, LABELED = 4, 6, 2
FEW = {"batch_size": ROWS, "labeled_batch": LABELED}
METHODS = [
    EntropyMinimization(**FEW),
    EntropyMinimization(joint=True, **FEW),
    PseudoLabel(**FEW),
    PseudoLabel(joint=True, threshold=0.1, **FEW),
    PiModel(batch_size=ROWS),
    PiModel(compared="unlabeled", stop_gradient=True, linear=True, **FEW),
    PiModel(compared="apart", decay=1e-4, **FEW),
    TemporalEnsembling(batch_size=ROWS),
    MeanTeacher(batch_size=ROWS),
    MeanTeacher(compared="unlabeled", early_average=0.9, early_beta2=0.99, **FEW),
    MeanTeacher(compared="apart", linear=True, decay=1e-4, **FEW),
    VirtualAdversarialTraining(**FEW),
    VirtualAdversarialTraining(entropy=1.0, order="clean_last", score_norm=True, ramp=0.4, **FEW),
    VirtualAdversarialTraining(joint=True, iterations=2, linear=True, ramp=0.4, decay=1e-4, **FEW),
    Mixup(**FEW),
    Mixup(per_sample=False, dominant=False, **FEW),
    InterpolationConsistency(**FEW),
    InterpolationConsistency(mixed="scores", per_sample=True, dominant=True, mix_labeled=False, **FEW),
    MixMatch(**FEW),
    *(MixMatch(mixed=mixed, **FEW) for mixed in ("none", "labeled", "unlabeled", "separate")),
    MixMatch(guesses=1, interleaved=False, per_sample=False, **FEW),
    MixMatch(guesses=3, temperature=1.0, guess_by_average=True, **FEW),
    SelfSupervisedSemi(warmup=0, augment="none", **FEW),
    SelfSupervisedSemi(warmup=0, augment="none", rotate_labeled=False, weight=0.5, **FEW),
]
MIXED = [m for m in METHODS if isinstance(m, (Mixup, InterpolationConsistency, MixMatch))]


def _views(count: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = (ROWS, 3, 16, 16)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for _ in range(count)]


def _batch(count: int = 1) -> Batch:
    return Batch(torch.arange(ROWS), _views(count), torch.tensor([3, 0, -1, -1, -1, -1]), flip=False)


def _built(method, backbone, data, run=None):
    model = method.build(backbone, data.shape, torch.Generator().manual_seed(0)).train()
    return model, method.state(model, data, run) if run else {}


def _sharp(model):
    """Scores far from uniform, so that no term is nearly constant."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(100)
    return model


def _numpy_softmax(scores):
    e = np.exp(scores - scores.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# ---- the terms -------------------------------------------------------------------------------------


def test_entropy_and_divergence_in_float64() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)) * 3, rng.normal(size=(5, 7)) * 3
    p, q = _numpy_softmax(a), _numpy_softmax(b)
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    assert float(entropy(first)) == pytest.approx(-(p * np.log(p)).sum(1).mean(), rel=1e-5)
    assert np.allclose(divergence(first, second), (p * np.log(p / q)).sum(1), rtol=1e-12)
    uniform, sure = torch.zeros(2, 8), torch.eye(8)[:2] * 100
    assert float(entropy(uniform)) == pytest.approx(math.log(8))
    assert float(entropy(sure)) == pytest.approx(0, abs=1e-6)


def test_entropy_minimization(plain_backbone, data) -> None:
    method, batch = EntropyMinimization(weight=0.5, **FEW), _batch()
    model, _ = _built(method, plain_backbone, data)
    p = _numpy_softmax(_sharp(model)(batch.views[0]).detach().double().numpy())
    terms = method.losses(model, {}, batch, 1, 1)
    assert float(terms["class"].detach()) == pytest.approx(-np.log(p[[0, 1], [3, 0]]).mean(), rel=1e-4)
    assert float(terms["entropy"].detach()) == pytest.approx(
        -0.5 * (p * np.log(p)).sum(1)[2:].mean(), rel=1e-4
    )


def test_pseudo_labels_are_the_arg_max_and_may_need_to_be_sure(plain_backbone, data) -> None:
    batch = _batch()
    model = _sharp(_built(PseudoLabel(**FEW), plain_backbone, data)[0])
    p = _numpy_softmax(model(batch.views[0]).detach().double().numpy())[2:]
    threshold = float(np.sort(p.max(1))[:2].mean())  # between the two least sure ones
    for method, kept in ((PseudoLabel(**FEW), 0.0), (PseudoLabel(threshold=threshold, **FEW), threshold)):
        expected = 3 * (-np.log(p.max(1)) * (p.max(1) > kept)).sum() / len(p)
        assert float(method.losses(model, {}, batch, 1, 1)["pseudo"].detach()) == pytest.approx(
            expected, rel=1e-4
        )


def test_pseudo_labels_weight_rises_between_the_two_times() -> None:
    alpha = PseudoLabel().alpha
    assert [alpha(t) for t in (0, 0.05, 0.1, 0.6, 1.0)] == [0, 0, 0, 3, 3]
    assert alpha(0.35) == pytest.approx(1.5)
    assert PseudoLabel(starts=0.0, ends=0.0).alpha(0.0) == 3
    with pytest.raises(BenchError, match="must not be after ends"):
        PseudoLabel(starts=0.7)


def test_temporal_ensembling_corrects_the_bias_of_a_short_average(plain_backbone, data, make_run) -> None:
    method, batch = TemporalEnsembling(weight=2.0, by_labels=False, batch_size=ROWS), _batch()
    model, state = _built(method, plain_backbone, data, make_run())
    assert float(method.losses(model, state, batch, 1, 1)["consistency"].detach()) == 0  # no target yet
    z = np.zeros((ROWS, CLASSES))
    for epoch in range(1, 4):
        with torch.no_grad():
            model.head[1].weight.add_(0.3 * torch.randn(model.head[1].weight.shape))
        p = _numpy_softmax(model(batch.views[0]).detach().double().numpy())
        if epoch > 1:
            target = z / (1 - 0.6 ** (epoch - 1))
            assert np.allclose(target.sum(1), 1)
            term = method.losses(model, state, batch, 1, 1)["consistency"]
            assert float(term.detach()) == pytest.approx(2 * ((p - target) ** 2).mean(), rel=1e-4)
            (found,) = torch.autograd.grad(term, model.head[1].weight)
            scores = model(batch.views[0])
            own = 2 * (scores.softmax(1) - torch.from_numpy(target).float()).square().mean()
            assert torch.allclose(found, torch.autograd.grad(own, model.head[1].weight)[0], atol=1e-6)
        method.losses(model, state, batch, 1, 1)
        method.after_step(model, state, batch, epoch)
        z = 0.6 * z + 0.4 * p
        assert np.allclose(state["ensemble"][:ROWS], z, atol=1e-6)
    assert state["seen"].tolist() == [3] * ROWS + [0] * (len(data) - ROWS)


@pytest.mark.parametrize("compared", ["all", "unlabeled", "apart"])
@pytest.mark.parametrize("stop", [False, True])
def test_pi_model_compares_the_rows_it_should(compared, stop, plain_backbone, data, make_run) -> None:
    method = PiModel(weight=5.0, by_labels=False, stop_gradient=stop, compared=compared, **FEW)
    model, state = _built(method, plain_backbone, data, make_run())
    batch, weights = _batch(2), list(model.parameters())
    rows = slice(0 if compared == "all" else LABELED, None)
    first, second = (model(v).softmax(1)[rows] for v in batch.views)
    expected = torch.autograd.grad(
        5 * (first - (second.detach() if stop else second)).square().mean(), weights
    )
    terms = method.losses(model, state, batch, 1, 1)
    found = torch.autograd.grad(terms["consistency"], weights)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(expected, found, strict=True))
    known = F.cross_entropy(model(batch.views[0])[:LABELED], batch.targets[:LABELED])
    part = LABELED / ROWS if compared == "all" else 1
    assert torch.allclose(terms["class"], known * part)


def test_mean_teacher_averages_less_and_forgets_faster_while_the_cost_rises(backbone, data, make_run) -> None:
    method = MeanTeacher(early_average=0.9, early_beta2=0.99, ramp=0.5, batch_size=ROWS)
    model, state = _built(method, backbone, data, make_run())
    optimizer = method.new_optimizer(model)
    weight, student = model.head[1].weight, teacher.student_of(model).head[1].weight
    for done, average, beta2 in ((0, 0.9, 0.99), (49, 0.9, 0.99), (50, 0.999, 0.999), (99, 0.999, 0.999)):
        batch = _batch(2)
        method.losses(model, state, batch, done, 100)
        with torch.no_grad():
            weight.zero_()
            student.fill_(1.0)
        method.after_step(model, state, batch, 10_000)
        assert torch.allclose(weight, torch.full_like(weight, 1 - average), rtol=1e-4)
        method.adjust(optimizer, done, 100)
        assert optimizer.param_groups[0]["betas"][1] == beta2
    assert ema.rate(1, 0.9) == 0.5


@pytest.mark.parametrize(
    "method",
    [
        VirtualAdversarialTraining(weight=0.7, **FEW),
        VirtualAdversarialTraining(weight=0.7, order="clean_last", entropy=0.3, **FEW),
    ],
    ids=["clean_first", "clean_last"],
)
def test_vat_is_the_divergence_at_the_perturbed_input_and_moves_that_side_alone(
    method, plain_backbone, data
) -> None:
    batch = _batch()
    model = _sharp(_built(method, plain_backbone, data)[0])
    weights = list(model.parameters())
    x = inputs(model, batch.views[0])[LABELED:]
    clean = classify(model, x)
    d = Draws(0, 0, batch.index, stream=64).normal(3, 16, 16)[LABELED:]
    r = 8 * adversarial_direction(lambda v: classify(model, v), x, clean, d, xi=1e-6, iterations=1)
    p = clean.detach().log_softmax(1)
    q = classify(model, x + r).log_softmax(1)
    if method.order == "clean_last":
        p, q = q, p
    expected = 0.7 * (p.exp() * (p - q)).sum(1).mean()
    terms = method.losses(model, {}, batch, 1, 1)
    assert float(terms["smoothness"].detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    found = torch.autograd.grad(terms["smoothness"], weights, retain_graph=True)
    wanted = torch.autograd.grad(expected, weights)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5) for a, b in zip(found, wanted, strict=True))
    if method.entropy:
        assert torch.allclose(terms["entropy"], 0.3 * entropy(clean))
        assert torch.autograd.grad(terms["entropy"], weights)[0].abs().sum() > 0


def test_vat_rate_and_beta_fall_together() -> None:
    method = VirtualAdversarialTraining()
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)])
    for done, rate, beta in ((0, 1e-3, 0.9), (459, 1e-3, 0.9), (460, 1e-3, 0.5), (480, 5e-4, 0.5)):
        method.adjust(optimizer, done, 500)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
        assert optimizer.param_groups[0]["betas"] == (beta, 0.999)


# ---- the direction of VAT --------------------------------------------------------------------------


def _cosines(iterations: int, dtype: torch.dtype, xi: float = 1e-6, rows: int = 40) -> torch.Tensor:
    """|cosine| of the direction found and the first eigenvector of the exact Hessian, image by image."""
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(
        nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 10)
    ).double()
    with torch.no_grad():
        for layer in net[::2]:
            fan = layer.weight.shape[1]
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * 2 / fan**0.5)
            layer.bias.zero_()
    x, d = (torch.randn(rows, 30, generator=generator).double() for _ in range(2))
    vectors = []
    for row in x:
        clean = net(row[None]).detach()
        hessian = torch.autograd.functional.hessian(
            lambda r, row=row, clean=clean: divergence(clean, net((row + r)[None])).sum(),
            torch.zeros(30).double(),
        )
        vectors.append(torch.linalg.eigh(hessian)[1][:, -1])
    net, x, d = net.to(dtype), x.to(dtype), d.to(dtype)
    found = adversarial_direction(net, x, net(x), d, xi=xi, iterations=iterations)
    return (found.double() * torch.stack(vectors)).sum(1).abs()


def test_vat_finds_the_first_eigenvector_of_the_exact_hessian(record_property) -> None:
    ten, one = _cosines(10, torch.float64), _cosines(1, torch.float64)
    record_property("median |cosine| after 10 iterations", float(ten.median()))
    record_property("median |cosine| after 1 iteration", float(one.median()))
    print(f"median |cosine|: {ten.median():.4f} after 10 power iterations, {one.median():.4f} after one")
    assert ten.median() >= 0.95
    assert ten.median() > one.median() > 0.3


def test_directions_have_unit_length_whatever_their_scale() -> None:
    d = torch.randn(4, 3, 2, 2) * torch.tensor([1e-30, 1e-3, 1.0, 1e10]).view(-1, 1, 1, 1)
    lengths = unit(d[1:]).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.ones(3), atol=1e-3)
    assert torch.isfinite(unit(torch.zeros(1, 4))).all()
    flat = d[2].flatten().double().numpy()
    assert np.allclose(unit(d[2:3]).flatten(), flat / np.linalg.norm(flat), atol=1e-5)


def test_vat_passes_share_their_dropout(plain_backbone, data) -> None:
    model = _built(VirtualAdversarialTraining(**FEW), plain_backbone, data)[0]
    model.head[0].p = 0.5
    x, found = inputs(model, _views()[0]), []
    for _ in range(2):
        restart(x.device)
        found.append(classify(model, x))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], classify(model, x))


# ---- mixing ----------------------------------------------------------------------------------------


def test_sharpening() -> None:
    p = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]])
    squares = p.numpy().astype(np.float64) ** 2
    assert np.allclose(sharpen(p, 0.5), squares / squares.sum(1, keepdims=True))
    assert torch.allclose(sharpen(p, 1.0), p)
    assert torch.allclose(sharpen(p, 0.01)[0], torch.tensor([1.0, 0.0, 0.0]))


def test_mixing_is_the_written_combination() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(5, 3, 2, 2), torch.randn(5, 3, 2, 2)
    share = shares(a, 0.75, per_sample=True, dominant=True)
    mixed = mix(a, b, share)
    for i in range(5):
        assert torch.allclose(mixed[i], share[i] * a[i] + (1 - share[i]) * b[i], atol=1e-6)
    assert torch.equal(mix(a, a, share), a)
    assert sorted(partners(a).tolist()) == list(range(5))
    one = shares(a, 1.0, per_sample=False, dominant=False)
    assert len(one) == 5
    assert (one == one[0]).all()


@pytest.mark.parametrize("alpha", [0.1, 0.75, 1.0])
def test_shares_are_beta(alpha) -> None:
    torch.manual_seed(0)
    like = torch.zeros(20_000)
    plain = shares(like, alpha, per_sample=True, dominant=False).double()
    assert float(plain.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(plain.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)
    torch.manual_seed(0)
    dominant = shares(like, alpha, per_sample=True, dominant=True)
    assert torch.equal(dominant, torch.maximum(plain, 1 - plain).float())


def test_mixup_of_labels_and_of_guesses(plain_backbone, data, make_run) -> None:
    method, batch = Mixup(weight=0.5, **FEW), _batch()
    model, state = _built(method, plain_backbone, data, make_run())
    student = _sharp(teacher.student_of(model))
    torch.manual_seed(7)
    terms = method.losses(model, state, batch, 1, 1)
    torch.manual_seed(7)
    x = inputs(student, batch.views[0])
    for name, rows, labels, weight in (
        ("class", x[:LABELED], torch.eye(CLASSES)[[3, 0]], 1.0),
        ("guess", x[LABELED:], classify(student, x[LABELED:]).softmax(1).detach(), 0.5),
    ):
        share, other = shares(rows, 0.75, per_sample=True, dominant=True), partners(rows)
        log_p = classify(student, mix(rows, rows[other], share)).log_softmax(1)
        target = share[:, None] * labels + (1 - share[:, None]) * labels[other]
        assert torch.allclose(terms[name], -weight * (target * log_p).sum(1).mean(), atol=1e-5)


@pytest.mark.parametrize("mixed", ["probabilities", "scores"])
def test_ict_compares_with_the_mixed_teacher(mixed, plain_backbone, data, make_run) -> None:
    method, batch = InterpolationConsistency(weight=3.0, mixed=mixed, mix_labeled=False, **FEW), _batch()
    model, state = _built(method, plain_backbone, data, make_run())
    _sharp(model)
    student = teacher.student_of(model)
    torch.manual_seed(7)
    terms = method.losses(model, state, batch, 1, 1)
    torch.manual_seed(7)
    u = inputs(student, batch.views[0])[LABELED:]
    share, other = shares(u, 1.0, per_sample=False, dominant=False), partners(u)
    taught, weight = classify(model, u).detach(), share[:, None]
    if mixed == "probabilities":
        target = weight * taught.softmax(1) + (1 - weight) * taught.softmax(1)[other]
    else:
        target = (weight * taught + (1 - weight) * taught[other]).softmax(1)
    found = classify(student, mix(u, u[other], share)).softmax(1)
    assert torch.allclose(terms["consistency"], 3 * (found - target).square().mean(), atol=1e-5)
    known = F.cross_entropy(student(batch.views[0])[:LABELED], batch.targets[:LABELED])
    assert torch.allclose(terms["class"], known, atol=1e-5)


def test_ict_cosine_is_cut_off() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    InterpolationConsistency().adjust(optimizer, 399, 400)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05 * (1 + math.cos(math.pi * 399 / 450)))


@pytest.mark.parametrize("interleaved", [True, False])
def test_mixmatch_is_the_written_loss(interleaved, plain_backbone, data, make_run) -> None:
    method, batch = MixMatch(weight=9.0, interleaved=interleaved, **FEW), _batch(2)
    model, state = _built(method, plain_backbone, data, make_run())
    student = _sharp(teacher.student_of(model))
    torch.manual_seed(7)
    terms = method.losses(model, state, batch, 1, 1)
    torch.manual_seed(7)
    x, u1 = (inputs(student, view) for view in batch.views)
    x, u0, u1 = x[:LABELED], x[LABELED:], u1[LABELED:]
    q = (classify(student, u0).softmax(1) + classify(student, u1).softmax(1)).detach() / 2
    q = q**2 / (q**2).sum(1, keepdim=True)
    rows, labels = torch.cat([x, u0, u1]), torch.cat([torch.eye(CLASSES)[[3, 0]], q, q])
    other = partners(rows)
    share = shares(rows, 0.75, per_sample=True, dominant=True)
    assert (share >= 0.5).all()
    wide = share.view(-1, 1, 1, 1)
    scores = classify(student, wide * rows + (1 - wide) * rows[other])
    target = share[:, None] * labels + (1 - share[:, None]) * labels[other]
    known = -(target[:LABELED] * scores[:LABELED].log_softmax(1)).sum(1).mean()
    guess = 9 * ((target - scores.softmax(1))[LABELED:] ** 2).mean()
    assert torch.allclose(terms["class"], known, atol=1e-4)
    assert torch.allclose(terms["guess"], guess, atol=1e-4)


@pytest.mark.parametrize("mixed", ["none", "labeled", "unlabeled", "separate", "all"])
def test_mixmatch_mixes_whom_it_should(mixed) -> None:
    torch.manual_seed(0)
    n, rows = 20, torch.arange(80.0)[:, None]
    origin = torch.cat([torch.zeros(n), torch.ones(60)])[:, None]
    moved, came = MixMatch(mixed=mixed, alpha=1.0, **FEW).mix(rows, origin, n)
    changed, crossed = (moved != rows).squeeze(1), (came != origin).squeeze(1)
    assert bool(changed[:n].any()) == (mixed in {"labeled", "separate", "all"})
    assert bool(changed[n:].any()) == (mixed in {"unlabeled", "separate", "all"})
    assert bool(crossed.any()) == (mixed == "all")


def test_mixmatch_moves_statistics_in_the_first_pass_alone(backbone, data, make_run) -> None:
    method, batch = MixMatch(**FEW), _batch(2)
    model, state = _built(method, backbone, data, make_run())
    method.losses(model, state, batch, 1, 1)
    counts = {name: b for name, b in model.named_buffers() if name.endswith("num_batches_tracked")}
    assert counts
    assert all(int(b) == name.startswith("variants.student") for name, b in counts.items())
    method.after_step(model, state, batch, 1)
    student = dict(teacher.student_of(model).encoder.named_buffers())
    assert all(torch.equal(b, student[name]) for name, b in model.encoder.named_buffers())


def test_ablation_rows_take_their_passes(data) -> None:
    passes = {k: MixMatch(guesses=k).passes(data.shape) for k in (1, 2, 4)}
    assert passes == {k: pytest.approx(0.5 + 0.5 * k * 4 / 3) for k in (1, 2, 4)}
    vat = VirtualAdversarialTraining(batch_size=4, labeled_batch=2)
    assert vat.passes(data.shape) == pytest.approx(0.5 + 0.5 * 2)
    assert dataclasses.replace(vat, entropy=1.0).passes(data.shape) == pytest.approx(0.5 + 0.5 * (8 / 3))
    assert SelfSupervisedSemi().passes(data.shape) == 4


def test_decay_shrinks_kernels_alone() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))
    before = {k: v.clone() for k, v in net.state_dict().items()}
    shrink(net, 0.25)
    for name, value in net.state_dict().items():
        part = 0.75 if name in {"0.weight", "3.weight"} else 1
        assert torch.allclose(value, before[name] * part)


# ---- self-supervised -------------------------------------------------------------------------------


def test_s4l_classifies_every_rotation_and_tells_them_apart(plain_backbone, data) -> None:
    method, batch = SelfSupervisedSemi(weight=0.5, warmup=0, **FEW), _batch()
    model, _ = _built(method, plain_backbone, data)
    view, of_class, of_turn = batch.views[0], [], {True: [], False: []}
    for turn in range(4):
        for i, image in enumerate(view):
            features = model.encoder(torch.rot90(image, turn, (1, 2))[None])
            if i < LABELED:
                of_class.append(F.cross_entropy(model.head(features), batch.targets[i : i + 1]))
            of_turn[i < LABELED].append(
                F.cross_entropy(model.parts["rotation"](features), torch.tensor([turn]))
            )
    labeled, unlabeled = (torch.stack(of_turn[k]).mean() for k in (True, False))
    terms = method.losses(model, {}, batch, 1, 1)
    assert torch.allclose(terms["class"], torch.stack(of_class).mean(), atol=1e-5)
    assert torch.allclose(terms["rotation"], 0.5 * (labeled + unlabeled) / 2, atol=1e-5)


# ---- what all of them owe --------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_unlabeled_term_changes_the_students_gradient(
    method, precision, backbone, data, make_run
) -> None:
    torch.manual_seed(0)  # input noise and dropout
    run = make_run(precision=precision)
    model, state = _built(method, backbone, data, run)
    _sharp(model)
    feed = _Feed(method, data, run)
    for epoch in range(2):
        batch = next(iter(feed.batches(state, epoch, 0)))
        with run.autocast():
            terms = method.losses(model, state, batch, 1000, 1000)
        if epoch == 0 and "ensemble" in state:
            state["seen"] += 1
            state["ensemble"] += 0.4 / CLASSES
    assert len(terms) > 1
    learner = method.learner(model)
    student, others = list(learner.parameters()), set(model.parameters()) - set(learner.parameters())
    for name, term in terms.items():
        found = torch.autograd.grad(term, [*student, *others], retain_graph=True, allow_unused=True)
        kernels = [
            (w, g) for w, g in zip(student, found, strict=False) if w.ndim > 1 and w.shape[0] != CLASSES
        ]
        assert any(g is not None and g.abs().max() > 0 for _, g in kernels), f"{name} moves no kernel"
        assert all(g is None for g in found[len(student) :]), f"{name} moves what is no student"


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_resumed_run_is_the_undisturbed_one(method, backbone, data, make_run, stopped) -> None:
    def made(run):
        return method.train(method.build(backbone, data.shape, run.generator("weights")), data, run)

    expected, run = made(make_run(budget="1 epochs")).state_dict(), make_run(budget="1 epochs")
    run.stop = 3
    with pytest.raises(stopped):
        made(run)
    run.stop = -1
    found = made(run).state_dict()
    assert [k for k in expected if not torch.equal(expected[k], found[k])] == []


def test_few_labels_make_a_smaller_labeled_batch_and_dearer_steps(backbone, data, make_run) -> None:
    few = dataclasses.replace(data, labels=torch.where(torch.arange(48) < 2, data.labels, -1))
    method, run = MixMatch(batch_size=10, labeled_batch=5, mixed="none"), make_run(budget=96)
    method.train(method.build(backbone, few.shape, run.generator("weights")), few, run)
    steps = int(96 / (2 + 8 * 2 * 4 / 3))
    assert run.snapshots[-1] == steps
    assert run.seen == 10 * steps
    none = dataclasses.replace(data, labels=torch.full((48,), -1))
    with pytest.raises(BenchError, match="needs labels"):
        method.train(method.build(backbone, none.shape, run.generator("weights")), none, make_run())


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: MixMatch(labeled_batch=0), "mixmatch.labeled_batch must be at least 1"),
        (lambda: MixMatch(mixed="some"), "mixmatch.mixed must be one of all, none"),
        (lambda: MixMatch(guesses=0), "mixmatch.guesses must be at least 1"),
        (lambda: VirtualAdversarialTraining(order="forward"), "vat.order must be"),
        (lambda: InterpolationConsistency(mixed="logits"), "ict.mixed must be"),
        (lambda: PiModel(compared="some"), "pi_model.compared must be one of"),
        (lambda: MeanTeacher(compared="apart"), "needs labeled images apart"),
    ],
)
def test_wrong_settings_are_one_line(make, told) -> None:
    with pytest.raises(BenchError, match=told):
        make()


def test_an_epoch_passes_over_the_unlabeled_or_over_all(data) -> None:
    assert len(MixMatch(**FEW).samples(data)) == 32
    assert len(VirtualAdversarialTraining(**FEW).samples(data)) == 48


def test_unrecorded_passes_normalize_by_their_batch() -> None:
    norm = nn.BatchNorm2d(2)
    x = torch.randn(4, 2, 3, 3) + 5
    with unrecorded(norm):
        quiet = norm(x)
    assert torch.equal(norm.running_mean, torch.zeros(2))
    assert torch.equal(quiet, norm(x))
    assert int(norm.num_batches_tracked) == 1


# ---- whitening -------------------------------------------------------------------------------------


class _Noise(Images):
    """Uneven uint8 noise with correlated channels."""

    def __init__(self, count: int, side: int, *, gray: bool = False) -> None:
        generator = torch.Generator().manual_seed(2)
        base = torch.randint(0, 128, (count, 3, side, side), generator=generator)
        base = base[:, :1].expand_as(base) if gray else base + base[:, :1]
        self.side, self.pixels = side, base.to(torch.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def views(self, batches, frames, seed, epoch):
        for batch in batches:
            yield [frame(self.pixels[batch], None) for frame in frames]

    def to(self, device):
        return self


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(1e-5),
        Recipe(1e-6, inside=False),
        Recipe(1e-6, inside=False, standardized=True),
        Recipe(0.1, contrast=55.0),
    ],
)
def test_whitening_by_each_source(recipe) -> None:
    images, zca = _Noise(300, 3), Whitening(3, recipe)
    zca.fit(images)
    x = images.pixels.double().numpy() / 255
    if recipe.standardized:
        mean, std = np.array([125.3, 123.0, 113.9]) / 255, np.array([63.0, 62.1, 66.7]) / 255
        x = (x - mean[:, None, None]) / std[:, None, None]
    x = x.reshape(300, -1)
    if recipe.contrast:
        x = x - x.mean(1, keepdims=True)
        x = recipe.contrast * x / np.linalg.norm(x, axis=1, keepdims=True)
    s, u = np.linalg.eigh(np.cov(x.T, bias=True))
    s = s.clip(0)
    scale = 1 / np.sqrt(s + recipe.constant) if recipe.inside else 1 / np.sqrt(s) + recipe.constant
    expected = (x - x.mean(0)) @ (u * scale) @ u.T
    found = zca(images.pixels).flatten(1).numpy()
    assert np.allclose(found, expected, atol=2e-3)
    if not recipe.contrast:
        assert np.allclose(np.cov(found.T, bias=True), np.eye(27), atol=0.02)
    again = Whitening(3, recipe)
    again.load_state_dict(zca.state_dict())
    assert torch.equal(again(images.pixels), zca(images.pixels))
    assert torch.allclose(zca(images.pixels.float() / 255), zca(images.pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("images", "recipe", "told"),
    [
        (_Noise(27, 3), Recipe(), "needs more images than its 27 dimensions; there are 27"),
        (_Noise(60, 4), Recipe(), "needs images of 3 pixels"),
        (_Noise(60, 3, gray=True), Recipe(1e-6, inside=False), "needs variance in every direction"),
    ],
)
def test_whitening_is_refused_in_one_line(images, recipe, told) -> None:
    with pytest.raises(BenchError, match=told):
        Whitening(3, recipe).fit(images)


def test_whitened_backbones_share_one_fit(data, make_run) -> None:
    from bench.backbones.alexnet_small import AlexNetSmall

    images = _Noise(200, 8)
    backbone = _whitening.named(AlexNetSmall(widths=(4, 4, 4, 4, 4), stem_stride=1), "laine_aila", 8)
    method = MeanTeacher(batch_size=8)
    shape = dataclasses.replace(data.shape, side=8, count=200)
    model = method.build(backbone, shape, torch.Generator().manual_seed(0))
    _whitening.fit(model, images)
    own, other = model.encoder.input, teacher.student_of(model).encoder.input
    assert torch.equal(own.matrix, other.matrix)
    assert not torch.equal(own.matrix, torch.eye(192))
    assert model(images.pixels[:5]).shape == (5, CLASSES)
    assert backbone.name == "alexnet_small"
    method.build(backbone, shape, torch.Generator()).load_state_dict(model.state_dict())
