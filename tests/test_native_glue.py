"""The native stem, unpooling and head, and the probe, against torch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sanrobust.errors import BackendError
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import HeadArgs, RepeatArgs, StemArgs, UnpoolArgs
from sanrobust.kernels.native.library import Library

SIDES = [(4, 6), (5, 7), (2, 2), (3, 2), (1, 5), (9, 4)]
# Both sides round a few float32 products of values about 1.
CLOSE = 1e-5


@pytest.fixture(params=library.levels() or ("none",))
def native(request: pytest.FixtureRequest) -> Library:
    if library.load() is None:
        pytest.skip(f"no native kernels: {library.refusal()}")
    return library.load_level(request.param)


@pytest.fixture
def random() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Stem:
    """The first layer on random pixels: ``forward`` and ``backward`` natively, and the truth."""

    def __init__(self, random: torch.Generator, sides: tuple[int, int], channels: int,
                 pooled: bool, images: int = 2) -> None:
        self.pixels = torch.randn(images, 3, *sides, generator=random)
        self.weight = torch.randn(3, channels, generator=random)
        self.bias = torch.randn(channels, generator=random)
        self.pooled = pooled
        side = 2 if pooled else 1
        shape = (images, sides[0] // side, sides[1] // side, channels)
        self.out = torch.full(shape, 7.0)
        self.codes = torch.full(shape, 99, dtype=torch.uint8)
        self.grad = torch.randn(*shape, generator=random)
        self.grad_pixels = torch.full_like(self.pixels, 7.0)

    def args(self, threads: int = 1, codes: bool = True) -> StemArgs:
        images, _, height, width = self.pixels.shape
        return StemArgs(images=images, height=height, width=width, channels=len(self.bias),
                        pooled=int(self.pooled), threads=threads, pixels=self.pixels,
                        weight=self.weight, bias=self.bias, out=self.out,
                        codes=self.codes if codes else None, grad=self.grad,
                        grad_pixels=self.grad_pixels)

    def run(self, native: Library, threads: int = 1) -> None:
        native.call("sanrobust_stem_forward", self.args(threads))
        native.call("sanrobust_stem_backward", self.args(threads))

    def truth(self) -> tuple[Tensor, Tensor]:
        """The output (B, H', W', C) and the pixels' gradient in float64."""
        pixels = self.pixels.double().requires_grad_()
        out = F.conv2d(pixels, self.weight.double().t()[:, :, None, None], self.bias.double())
        out = out.relu()
        if self.pooled and out.shape[2] > 1 and out.shape[3] > 1:
            out = F.max_pool2d(out, 2)
        elif self.pooled:
            out = out[:, :, :0, :0].reshape(*out.shape[:2], *self.out.shape[1:3])
        out = out.permute(0, 2, 3, 1)
        (grad,) = torch.autograd.grad(out, pixels, self.grad.double())
        return out.detach(), grad


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("channels", [64, 21, 3])
@pytest.mark.parametrize("sides", SIDES)
def test_the_stem_and_its_gradient_are_right(native: Library, random: torch.Generator,
                                             sides: tuple[int, int], channels: int,
                                             pooled: bool) -> None:
    stem = Stem(random, sides, channels, pooled)
    out, grad = stem.truth()
    stem.run(native)
    torch.testing.assert_close(stem.out, out.float(), rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(stem.grad_pixels, grad.float(), rtol=CLOSE, atol=CLOSE)


def test_the_stem_gives_no_gradient_to_pixels_that_pooling_leaves_out(
        native: Library, random: torch.Generator) -> None:
    stem = Stem(random, (7, 5), 16, True)
    stem.run(native)
    assert stem.grad_pixels[:, :, 6].eq(0).all() and stem.grad_pixels[:, :, :, 4].eq(0).all()
    assert stem.grad_pixels[:, :, :6, :4].ne(0).any()


def test_the_stem_keeps_nan_in_the_pooled_pixel(native: Library, random: torch.Generator) -> None:
    stem = Stem(random, (4, 4), 20, True, images=1)
    stem.pixels[0, 1, 2, 1] = torch.nan
    stem.run(native)
    assert stem.out[0, 1, 0].isnan().all()
    assert stem.out.isnan().sum() == 20
    assert stem.codes[0, 1, 0].eq(4).all()


def test_the_stem_needs_no_codes_to_go_forward(native: Library, random: torch.Generator) -> None:
    stem = Stem(random, (4, 6), 24, True)
    native.call("sanrobust_stem_forward", stem.args(codes=False))
    torch.testing.assert_close(stem.out, stem.truth()[0].float(), rtol=CLOSE, atol=CLOSE)
    with pytest.raises(BackendError, match="stem_backward"):
        native.call("sanrobust_stem_backward", stem.args(codes=False))


def test_no_bit_of_the_stem_depends_on_threads(native: Library) -> None:
    one, three = (Stem(torch.Generator().manual_seed(3), (12, 10), 64, True) for _ in range(2))
    one.run(native)
    three.run(native, threads=3)
    assert torch.equal(one.out, three.out)
    assert torch.equal(one.grad_pixels, three.grad_pixels)


@pytest.mark.parametrize("channels", [64, 19])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("threads", [1, 2])
def test_unpooling_gives_the_gradient_to_the_winner_alone(
        native: Library, random: torch.Generator, sides: tuple[int, int], channels: int,
        threads: int) -> None:
    height, width = sides
    shape = (3, height // 2, width // 2, channels)
    grad, scale = torch.randn(*shape, generator=random), torch.randn(channels, generator=random)
    codes = torch.randint(0, 5, shape, generator=random, dtype=torch.uint8)
    grad[codes == 4] = torch.nan                # must not reach any pixel
    out = torch.full((3, height, width, channels), 7.0)
    native.call("sanrobust_unpool", UnpoolArgs(
        images=3, height=height, width=width, channels=channels, threads=threads,
        grad=grad, codes=codes, scale=scale, out=out))
    wanted = torch.zeros_like(out)
    for code in range(4):
        place = wanted[:, code // 2:height // 2 * 2:2, code % 2:width // 2 * 2:2]
        place.copy_(torch.where(codes == code, grad * scale, 0))
    assert torch.equal(out, wanted)


@pytest.mark.parametrize(("pixels", "channels"), [(1, 16), (35, 19), (40, 64)])
@pytest.mark.parametrize("threads", [1, 3])
def test_one_map_becomes_query_key_and_value(native: Library, random: torch.Generator,
                                             pixels: int, channels: int, threads: int) -> None:
    x, grad = torch.randn(pixels, channels, generator=random), torch.randn(
        pixels, 3, channels, generator=random)
    scale, shift = (torch.randn(3, channels, generator=random) for _ in range(2))
    out, grad_x = torch.full_like(grad, torch.nan), torch.full_like(x, torch.nan)
    args = RepeatArgs(pixels=pixels, channels=channels, threads=threads, x=x, scale=scale,
                      shift=shift, out=out, grad=grad, grad_x=grad_x)
    native.call("sanrobust_repeat_forward", args)
    native.call("sanrobust_repeat_backward", args)
    torch.testing.assert_close(out, x[:, None] * scale + shift)
    torch.testing.assert_close(grad_x, (grad * scale).sum(1))


class Head:
    """The mean of rectified maps on random values: native results and the truth."""

    def __init__(self, random: torch.Generator, pixels: int, channels: int,
                 images: int = 2) -> None:
        self.x = torch.randn(images, pixels, channels, generator=random)
        self.scale = torch.randn(channels, generator=random)
        self.shift = torch.randn(channels, generator=random)
        self.grad = torch.randn(images, channels, generator=random)
        self.pooled = torch.full((images, channels), 7.0)
        self.signs = torch.full((images * pixels, (channels + 15) // 16), -1, dtype=torch.int16)
        self.grad_x = torch.full_like(self.x, 7.0)

    def args(self, threads: int = 1, signs: bool = True) -> HeadArgs:
        images, pixels, channels = self.x.shape
        return HeadArgs(images=images, pixels=pixels, channels=channels, threads=threads,
                        x=self.x, scale=self.scale, shift=self.shift, pooled=self.pooled,
                        signs=self.signs if signs else None, grad=self.grad,
                        grad_x=self.grad_x)

    def run(self, native: Library, threads: int = 1) -> None:
        native.call("sanrobust_head_forward", self.args(threads))
        native.call("sanrobust_head_backward", self.args(threads))

    def expected(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = self.x.to(dtype).requires_grad_()
        pooled = (x * self.scale.to(dtype) + self.shift.to(dtype)).relu().mean(1)
        (grad,) = torch.autograd.grad(pooled, x, self.grad.to(dtype))
        return pooled.detach(), grad


@pytest.mark.parametrize("pixels, channels", [(49, 64), (1, 16), (7, 130), (50, 3)])
def test_the_head_and_its_gradient_are_right(native: Library, random: torch.Generator,
                                             pixels: int, channels: int) -> None:
    head = Head(random, pixels, channels)
    pooled, grad = head.expected(torch.float64)
    head.run(native)
    torch.testing.assert_close(head.pooled, pooled.float(), rtol=CLOSE, atol=CLOSE)
    torch.testing.assert_close(head.grad_x, grad.float(), rtol=CLOSE, atol=CLOSE)


def test_the_mean_over_a_large_map_is_as_exact_as_torchs(native: Library,
                                                         random: torch.Generator) -> None:
    head = Head(random, 3000, 32)
    truth = head.expected(torch.float64)[0]
    native.call("sanrobust_head_forward", head.args(signs=False))
    own = (head.pooled - truth).abs().max()
    torchs = (head.expected(torch.float32)[0] - truth).abs().max()
    # torch adds in a tree, the kernel in four chains of 750: a few roundings of the sum more.
    assert own <= 2 * torchs + 2e-6


def test_the_head_keeps_nan_and_gives_it_no_gradient(native: Library,
                                                     random: torch.Generator) -> None:
    head = Head(random, 9, 20)
    head.x[1, 4, 6] = torch.nan
    head.run(native)
    assert head.pooled[1, 6].isnan() and head.pooled.isnan().sum() == 1
    assert head.grad_x[1, 4, 6] == 0


def test_no_bit_of_the_head_depends_on_threads_or_on_the_batch(native: Library) -> None:
    one, three = (Head(torch.Generator().manual_seed(5), 49, 200, images=3) for _ in range(2))
    one.run(native)
    three.run(native, threads=3)
    assert torch.equal(one.pooled, three.pooled) and torch.equal(one.grad_x, three.grad_x)
    alone = Head(torch.Generator().manual_seed(5), 49, 200, images=3)
    for name in ("x", "pooled", "grad", "grad_x"):
        setattr(alone, name, getattr(alone, name)[1:2])
    alone.signs = alone.signs[:49]
    native.call("sanrobust_head_forward", alone.args())
    assert torch.equal(alone.pooled[0], one.pooled[1])


def test_the_head_goes_backward_only_with_its_signs(native: Library,
                                                    random: torch.Generator) -> None:
    head = Head(random, 9, 20)
    with pytest.raises(BackendError, match="head_backward"):
        native.call("sanrobust_head_backward", head.args(signs=False))


def test_the_probe_measures_a_plausible_rate(native: Library) -> None:
    # Slower than any processor of today: 0.1; faster than any core: 1000.
    assert 0.1 < native.probe(1, 0.01) < 1000
