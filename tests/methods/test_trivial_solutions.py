"""What would tell a patch's place without looking at what it shows: on images made to tell it, and little else.

A linear model reads the cue alone. Without the defense it tells left from right; with it, it guesses: its
accuracy on unseen images is one half, give or take 3.3 standard deviations of as many fair coins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from bench.augment import unit
from bench.contracts import DataShape, Draws
from methods._loop import Batch
from methods.context_prediction import ContextPrediction
from methods.counting import Counting
from methods.damaged_jigsaw import DamagedJigsaw
from methods.jigsaw import Jigsaw
from methods.parts import resampling
from methods.rotation import Rotation

COUNT, SIDE = 1200, 64
LEFT, RIGHT = 3, 5  # tiles of the middle row
MARGIN = 3.3 * 0.5 / (COUNT / 2) ** 0.5
CLEAR = 0.75

# No defense at all; tests turn on one after the other.
CONTEXT = ContextPrediction(
    patch=16, gap=4, patch_jitter=4, scale=(), colors="keep", shrink=0.0, normalize="none"
)
PUZZLE = Jigsaw(crop=63, tile=16, permutations=1, gray=0.0, channel_shift=0, normalize="none")
DAMAGED = DamagedJigsaw(
    crop=63, tile=16, permutations=1, normalize="none", quantiles=2, adversarial=0.0, decoder_width=2
)
COUNTS = Counting(crop=SIDE, gray=0.0)


def texture(side: int = SIDE, channels: int = 1) -> Tensor:
    """Noise in which pixels three or more apart know nothing of each other: (COUNT, channels, side, side)."""
    noise = torch.rand(COUNT, channels, side + 2, side + 2, generator=torch.Generator().manual_seed(7))
    return F.avg_pool2d(noise, 3, 1)


def as_pixels(images: Tensor) -> Tensor:
    return (images * 255).round().clamp(0, 255).to(torch.uint8).expand(-1, 3, -1, -1).contiguous()


def draws() -> Draws:
    return Draws(0, 0, torch.arange(COUNT))


def tiles_of(method: ContextPrediction | Jigsaw | DamagedJigsaw | Counting, images: Tensor) -> Tensor:
    """(COUNT, tiles, 3, s, s) as the encoder reads them, in the places where they belong."""
    if isinstance(method, ContextPrediction):
        found = method.patches(images[..., :SIDE, :SIDE], draws())
    elif isinstance(method, Counting):
        return method.parts(images, draws())[1]
    else:
        orders = torch.arange(9).expand(COUNT, 9)
        found = method._shuffled(images[..., :63, :63], orders, draws())
    if isinstance(method, DamagedJigsaw):
        found = method._grayed(found).expand(-1, 3, -1, -1)
    return found.view(COUNT, 9, *found.shape[1:])


def sides() -> Tensor:
    return torch.randint(2, (COUNT,), generator=torch.Generator().manual_seed(1))


def one_side(tiles: Tensor, right: Tensor) -> Tensor:
    """The left or the right tile of each image, as float64."""
    left_right = (LEFT, RIGHT) if tiles.shape[1] == 9 else (0, 1)
    at = torch.tensor(left_right)[right]
    return tiles[torch.arange(COUNT), at].double()


def accuracy(cue: Tensor, labels: Tensor) -> float:
    """Of a linear model that learned from one half of the images, on the other."""
    half = COUNT // 2
    model = LogisticRegression(max_iter=1000).fit(cue[:half].numpy(), labels[:half].numpy())
    return float(model.score(cue[half:].numpy(), labels[half:].numpy()))


def told(method: object, images: Tensor, cue: Callable[[Tensor], Tensor]) -> float:
    right = sides()
    return accuracy(cue(one_side(tiles_of(method, images), right)), right)


def check(name: str, off: float, on: dict[str, float]) -> None:
    print(
        f"\n{name}: {off:.3f} undefended;",
        ", ".join(f"{k} {v:.3f}" for k, v in on.items()),
        f"(0.5 +- {MARGIN:.3f})",
    )
    assert off > CLEAR
    for defense, found in on.items():
        assert abs(found - 0.5) <= MARGIN, defense


# ---- a lens that bends green apart from red and blue ----------------------------------------------


def bent() -> Tensor:
    """Green lies a pixel nearer to the image's middle than red and blue, on both sides of it."""
    base = texture(SIDE + 2)[..., 1:-1, :]
    middle = SIDE // 2
    green = torch.cat([base[..., 2 : middle + 2], base[..., middle:-2]], -1)
    plain = base[..., 1:-1]
    return as_pixels(torch.cat([plain, green, plain], 1))


def between_colors(patches: Tensor) -> Tensor:
    """Correlations of all pairs of channels, one of them moved sideways by -2 ... 2 pixels."""
    found = []
    for a, b in itertools.combinations(range(3), 2):
        for lag in range(-2, 3):
            one = patches[:, a, :, 2:-2]
            other = patches[:, b, :, 2 + lag : patches.shape[-1] - 2 + lag]
            stack = torch.stack([one.flatten(1), other.flatten(1)], 1)
            stack = stack - stack.mean(2, keepdim=True)
            found.append(F.cosine_similarity(stack[:, 0], stack[:, 1], dim=1))
    return torch.stack(found, 1)


def test_colors_that_a_lens_bends_apart() -> None:
    images = bent()
    check(
        "bent colors, context prediction",
        told(CONTEXT, images, between_colors),
        {
            colors: told(replace(CONTEXT, colors=colors), images, between_colors)
            for colors in ("drop", "project")
        },
    )
    check(
        "bent colors, jigsaw",
        told(PUZZLE, images, between_colors),
        {
            "gray": told(replace(PUZZLE, gray=1.0), images, between_colors),
            "projected": told(replace(PUZZLE, projected=1.0), images, between_colors),
        },
    )
    check(
        "bent colors, damaged jigsaw",
        told(PUZZLE, images, between_colors),
        {"luma": told(DAMAGED, images, between_colors)},
    )
    check(
        "bent colors, counting",
        told(COUNTS, images, between_colors),
        {"gray": told(replace(COUNTS, gray=1.0), images, between_colors)},
    )


def test_channels_that_shift_hide_what_the_lens_did() -> None:
    """A shift of +-2 covers a bend of one pixel for most tiles, not for all: half-way to guessing and beyond."""
    images = bent()
    off = told(PUZZLE, images, between_colors)
    on = told(replace(PUZZLE, tile=14, channel_shift=2), images, between_colors)
    print(f"\nbent colors, channel shift: {off:.3f} undefended, {on:.3f}")
    assert off > 0.95
    assert on < (off + 0.5) / 2


# ---- lines that go on from one patch to the next --------------------------------------------------


def across_the_border(pairs: Tensor) -> Tensor:
    """How alike the edges of two patches (COUNT, 2, 3, s, s) are, were the second to the right or to the left."""
    first, second = pairs[:, 0, 1], pairs[:, 1, 1]
    found = []
    for one, other in ((first[..., -1], second[..., 0]), (first[..., 0], second[..., -1])):
        found.append(F.cosine_similarity(*(e - e.mean(1, keepdim=True) for e in (one, other)), dim=1))
    return torch.stack(found, 1)


def continued(method: object, images: Tensor) -> float:
    right, tiles = sides(), tiles_of(method, images)
    pairs = torch.stack([tiles[:, 4].double(), one_side(tiles, right)], 1)
    return accuracy(across_the_border(pairs), right)


def test_edges_that_go_on() -> None:
    images = as_pixels(texture())
    apart = replace(
        CONTEXT, patch=14, gap=8, patch_jitter=2
    )  # four pixels at least: the texture has forgotten
    check(
        "edges, context prediction",
        continued(replace(CONTEXT, gap=0, patch_jitter=0), images),
        {"gap and jitter": continued(apart, images)},
    )
    check(
        "edges, jigsaw",
        continued(replace(PUZZLE, tile=21), images),
        {"gap": continued(replace(PUZZLE, tile=14, channel_shift=2, gray=1.0), images)},
    )
    assert continued(replace(DAMAGED, tile=21), images) > CLEAR


@pytest.mark.parametrize("method", [PUZZLE, DAMAGED], ids=lambda method: type(method).__name__)
def test_a_gap_that_may_close_leaves_little(method) -> None:
    found = continued(method, as_pixels(texture()))  # 0 to 10 pixels, and up or down by up to 5
    print(f"\nedges, {type(method).__name__} with gaps from 0 on: {found:.3f}")
    assert found < 0.65


# ---- brightness and contrast ----------------------------------------------------------------------


def lit() -> Tensor:
    """Darker and flatter to the left."""
    slope = torch.linspace(0, 1, SIDE)
    return as_pixels(0.2 + 0.4 * slope + (texture() - 0.5) * (0.4 + 0.8 * slope))


def statistics(patches: Tensor) -> Tensor:
    """Each channel's mean and deviation, in steps of 1/255."""
    return 255 * torch.cat([patches.mean((2, 3)), patches.std((2, 3))], 1)


@pytest.mark.parametrize("method", [CONTEXT, PUZZLE, DAMAGED], ids=lambda method: type(method).__name__)
def test_brightness_and_contrast(method) -> None:
    images = lit()
    found = {how: told(replace(method, normalize=how), images, statistics) for how in ("mean", "mean_std")}
    undefended = told(method, images, statistics)
    check(
        f"brightness and contrast, {type(method).__name__}", undefended, {"mean_std": found.pop("mean_std")}
    )
    assert found["mean"] > CLEAR  # the mean alone leaves the contrast


# ---- traces of an enlargement ---------------------------------------------------------------------


def marked() -> Tensor:
    """A checkerboard of single pixels, faint, on the left half: as careless enlarging leaves it."""
    at = torch.arange(SIDE)
    board = ((at[:, None] + at) % 2 * 2 - 1) * (at < SIDE // 2)
    return as_pixels(texture() + 0.02 * board)


def roughness(patches: Tensor) -> Tensor:
    """Mean size of what a pixel differs by from its four neighbors, and of the checkerboard's part."""
    kernel = torch.tensor([[0, -1, 0], [-1, 4, -1], [0, -1, 0]], dtype=torch.float64).expand(3, 1, 3, 3)
    rough = F.conv2d(patches, kernel, groups=3).abs().mean((2, 3))
    at = torch.arange(patches.shape[-1])
    board = (at[:, None] + at) % 2 * 2.0 - 1
    return torch.cat([rough, (patches * board).mean((2, 3)).abs()], 1) * 255


def test_traces_of_resampling() -> None:
    images = marked()
    shrunk = replace(CONTEXT, shrink=1.0, shrunk=(4, 8))
    check(
        "traces of resampling",
        told(CONTEXT, images, roughness),
        {"shrunk": told(shrunk, images, roughness)},
    )


def marks_of_a_filter(patches: Tensor) -> Tensor:
    """Correlations of pixels one, two and three apart."""
    x = patches - patches.mean((2, 3), keepdim=True)
    lags = [(x[..., lag:] * x[..., :-lag]).mean((1, 2, 3)) for lag in (1, 2, 3)]
    return torch.stack(lags, 1) / x.square().mean((1, 2, 3))[:, None]


def test_the_filter_that_halves_an_image_is_not_what_to_look_for() -> None:
    """Counting must not tell D x from T_j x by the trace of the filter in D.

    A linear model that has seen one filter only finds its trace each time, and little where another filter was
    at work. Shown all of them, as the method draws them, it is right less often than with one: the defense
    weakens this cue, it does not take it away.
    """
    noise = torch.rand(COUNT, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(COUNT) % 2

    def cue(*filters: str) -> Tensor:
        halved, quarters = replace(COUNTS, filters=filters).parts(noise, draws())
        return marks_of_a_filter(
            torch.where(labels[:, None, None, None] == 1, halved, quarters[:, 0]).double()
        )

    one, others, every = cue("bilinear"), cue("area", "bicubic", "lanczos"), cue(*resampling.FILTERS)
    half = COUNT // 2
    known, mixed = accuracy(one, labels), accuracy(every, labels)
    transferred = accuracy(torch.cat([one[:half], others[half:]]), labels)
    print(
        f"\nfilters: {known:.3f} for the one that was seen, {transferred:.3f} for others, {mixed:.3f} for all"
    )
    assert known > 0.95
    assert transferred < 0.65
    assert mixed < 0.9


def test_a_turn_by_moving_pixels_leaves_no_trace() -> None:
    """Quarter turns are transposed and flipped; turns by 45 degrees are resampled, and blur tells them."""
    images, labels = as_pixels(texture(32)), torch.arange(COUNT) % 2

    def cue(method: Rotation) -> Tensor:
        upright, turned = (method._turn_all(images, k) for k in (0, 1))
        return roughness(unit(torch.where(labels[:, None, None, None] == 1, turned, upright)).double())

    check(
        "traces of turning",
        accuracy(cue(Rotation(rotations=8)), labels),
        {"by transpose": accuracy(cue(Rotation()), labels)},
    )


# ---- padding --------------------------------------------------------------------------------------


def mirrors(patches: Tensor) -> Tensor:
    """How alike the neighbors of a column are, for the second to fifth from the left and from the right."""
    found = []
    for at in (1, 2, 3, 4, -5, -4, -3, -2):
        pair = torch.stack([patches[..., at - 1], patches[..., at + 1]], 1).flatten(2)
        found.append(F.cosine_similarity(*(pair - pair.mean(2, keepdim=True)).unbind(1), dim=1))
    return torch.stack(found, 1)


@pytest.mark.parametrize(
    "method",
    [replace(CONTEXT, patch_jitter=0, gap=8), replace(PUZZLE, tile=21), replace(DAMAGED, tile=21)],
    ids=lambda method: type(method).__name__,
)
def test_a_window_inside_the_image_shows_no_padding(method) -> None:
    """A crop of the padded image shows the padding, here a mirror, in four of nine border tiles: about .72 at best."""
    side = 64 if isinstance(method, ContextPrediction) else 63
    noise = torch.rand(COUNT, 3, side, side, generator=torch.Generator().manual_seed(5))
    shape = DataShape(2, COUNT, side, color=True, flip=False)

    def found(augment: str) -> float:
        frame, *_ = replace(method, augment=augment).frames(shape)
        return told(method, frame(as_pixels(noise), draws()), mirrors)

    padded, window = found("pad_crop_flip"), found("window")
    print(
        f"\npadding, {type(method).__name__}: {padded:.3f} padded, {window:.3f} window (0.5 +- {MARGIN:.3f})"
    )
    assert padded > 0.5 + 2 * MARGIN
    assert abs(window - 0.5) <= MARGIN


def outermost(maps: Tensor) -> Tensor:
    """Each map's mean and deviation in its first and in its last column."""
    ends = maps[..., [0, -1]]
    return torch.cat([ends.mean(2).flatten(1), ends.std(2).flatten(1)], 1)


@pytest.mark.parametrize("method", [CONTEXT, PUZZLE, DAMAGED], ids=lambda method: type(method).__name__)
def test_an_encoder_that_sees_a_tile_alone_pads_all_tiles_alike(method, small) -> None:
    """Zeros that convolutions pad with lie around the tile; around the whole image they would tell its border."""
    images, right = as_pixels(texture() * 0.5 + 0.5)[..., :63, :63], sides()
    if isinstance(method, ContextPrediction):
        method = replace(method, grids=1, gap=0, patch_jitter=2, patch_dim=8)  # 52 of 63 pixels
    method, shape = replace(method, hidden=(4,)), DataShape(2, COUNT, 63, color=True, flip=False)
    model = method.build(small, shape, torch.Generator().manual_seed(0)).eval()
    seen: list[Tensor] = []
    model.encoder.trunk.register_forward_hook(lambda _, __, maps: seen.append(maps))
    state = {"permutations": torch.arange(9)[None], "bins": torch.zeros(4, 2)}
    with torch.no_grad():
        method.losses(model, state, Batch(torch.arange(COUNT), [images]), 0, 1)
        model.encoder.trunk(model.encoder.input(images))
    alone, whole = seen
    parts = torch.where(right[:, None, None, None] == 1, whole[..., -5:], whole[..., :5])
    check(
        f"padding of convolutions, {type(method).__name__}",
        accuracy(outermost(parts.double()), right),
        {"tile alone": accuracy(outermost(one_side(alone.view(COUNT, 9, *alone.shape[1:]), right)), right)},
    )
