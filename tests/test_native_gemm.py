"""The native matrix product with its fused prologue and epilogue, against torch in float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sanrobust.errors import BackendError
from sanrobust.kernels.native import library
from sanrobust.kernels.native.arguments import GemmArgs, PackArgs, address
from sanrobust.kernels.native.library import Library

PROLOGUES = ("none", "affine", "affine, signs", "pool", "pool, codes")
EPILOGUES = ("none", "bias", "add", "bias, add", "mask", "mask, add")
MARGIN = 64     # floats after the output that nothing may write


@pytest.fixture(params=library.levels() or ("none",))
def native(request: pytest.FixtureRequest) -> Library:
    if library.load() is None:
        pytest.skip(f"no native kernels: {library.refusal()}")
    return library.load_level(request.param)


@dataclass
class Product:
    """One call: what goes in, and after ``run`` what came out."""

    inner: int
    columns: int
    left: Tensor                        # (rows, inner), pooled: (images, height, width, inner)
    right: Tensor                       # (inner, columns)
    start: Tensor                       # (rows, columns): the output's content before
    bias: Tensor | None = None
    scale: Tensor | None = None         # affine of the left side's channels
    shift: Tensor | None = None
    signs: Tensor | None = None
    codes: Tensor | None = None
    out_scale: Tensor | None = None
    mask: Tensor | None = None          # (rows, columns) bool
    add: bool = False

    @property
    def pooled(self) -> bool:
        return self.left.dim() == 4

    def pre_activation(self, dtype: torch.dtype) -> Tensor:
        left = self.left.to(dtype)
        if self.scale is None or self.shift is None:
            return left
        return left * self.scale.to(dtype) + self.shift.to(dtype)

    def prepared(self, dtype: torch.dtype) -> Tensor:
        left = self.pre_activation(dtype)
        if self.scale is not None:
            left = left.relu()
        if self.pooled:
            left = F.max_pool2d(left.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
        return left.reshape(-1, self.inner)

    def expected(self, dtype: torch.dtype) -> Tensor:
        product = self.prepared(dtype) @ self.right.to(dtype)
        if self.bias is not None:
            product = product + self.bias.to(dtype)
        if self.mask is not None and self.out_scale is not None:
            product = torch.where(self.mask, product * self.out_scale.to(dtype), 0)
        return product + self.start.to(dtype) if self.add else product

    def run(self, native: Library, threads: int = 1) -> Tensor:
        rows = self.start.shape[0]
        buffer = torch.full((rows * self.columns + MARGIN,), 7.0)
        out = buffer[:rows * self.columns].view(rows, self.columns)
        out.copy_(self.start)
        packed = pack(native, self.right)
        words = None if self.mask is None else to_words(self.mask)
        height, width = self.left.shape[1:3] if self.pooled else (0, 0)
        native.call("sanrobust_gemm", GemmArgs(
            rows=rows, inner=self.inner, columns=self.columns, threads=threads,
            accumulate=int(self.add), a=self.left, packed=packed, bias=self.bias, out=out,
            in_scale=self.scale, in_shift=self.shift, in_signs=self.signs, pool_height=height,
            pool_width=width, pool_codes=self.codes, out_scale=self.out_scale, out_signs=words))
        assert buffer[rows * self.columns:].eq(7.0).all(), "wrote past the output"
        return out


def pack(native: Library, right: Tensor) -> Tensor:
    inner, columns = right.shape
    packed = torch.empty(native.packed_size(inner, columns))
    native.call("sanrobust_pack", PackArgs(
        inner=inner, columns=columns, b=address(right), row_stride=right.stride(0),
        column_stride=right.stride(1), packed=packed))
    return packed


def to_words(mask: Tensor) -> Tensor:
    """Bits (rows, columns) to words of 16 (rows, ceil(columns / 16))."""
    padded = F.pad(mask.int(), (0, -mask.shape[1] % 16)).reshape(len(mask), -1, 16)
    return torch.bitwise_left_shift(padded, torch.arange(16)).sum(2).to(torch.int16)


def make(rows: int, inner: int, columns: int, prologue: str = "none", epilogue: str = "none",
         *, maps: tuple[int, int, int] = (2, 5, 7), seed: int = 0) -> Product:
    """A random call; a pooling prologue takes its rows from ``maps`` (images, height, width)."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    left = normal(*maps, inner) if "pool" in prologue else normal(rows, inner)
    if "pool" in prologue:
        rows = maps[0] * (maps[1] // 2) * (maps[2] // 2)
    product = Product(inner, columns, left, normal(inner, columns), normal(rows, columns))
    if prologue != "none":
        product.scale, product.shift = normal(inner), normal(inner)
    if "signs" in prologue:
        product.signs = torch.full((rows, (inner + 15) // 16), -1, dtype=torch.int16)
    if "codes" in prologue:
        product.codes = torch.full((rows, inner), 99, dtype=torch.uint8)
    if "bias" in epilogue:
        product.bias = normal(columns)
    if "mask" in epilogue:
        product.mask, product.out_scale = normal(rows, columns) > 0, normal(columns)
    product.add = "add" in epilogue
    return product


def assert_right(product: Product, native: Library, threads: int = 1) -> None:
    """The error to float64 is at most twice that of torch in float32.

    Both round each of ``inner`` sums, in different orders; the floor is one rounding of the
    largest term, for sums so short that torch's happen to be exact.
    """
    truth = product.expected(torch.float64)
    own = (product.run(native, threads) - truth).abs().max()
    torchs = (product.expected(torch.float32) - truth).abs().max()
    floor = 2 ** -22 * truth.abs().max().clamp(min=1)
    assert own <= 2 * torchs + floor


@pytest.mark.parametrize("epilogue", EPILOGUES)
@pytest.mark.parametrize("prologue", PROLOGUES)
def test_every_prologue_goes_with_every_epilogue(native: Library, prologue: str,
                                                 epilogue: str) -> None:
    assert_right(make(31, 24, 72, prologue, epilogue), native)


@pytest.mark.parametrize("rows", [1, 13, 14, 15, 57])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 24, 33])
@pytest.mark.parametrize("inner", [1, 7, 16, 33])
def test_no_size_needs_to_be_a_multiple_of_anything(native: Library, rows: int, inner: int,
                                                    columns: int) -> None:
    assert_right(make(rows, inner, columns, "affine, signs", "mask, add"), native)


def test_a_long_inner_side_is_summed_as_well_as_torch_does(native: Library) -> None:
    assert_right(make(49, 2048, 96, "affine", "bias"), native)


@pytest.mark.parametrize("maps", [(1, 2, 2), (3, 2, 5), (1, 9, 4), (2, 7, 7)])
def test_pooling_leaves_out_an_odd_last_row_and_column(native: Library,
                                                       maps: tuple[int, int, int]) -> None:
    assert_right(make(0, 20, 40, "pool, codes", "bias", maps=maps), native)


@pytest.mark.parametrize("inner", [5, 16, 41])
def test_sign_bits_tell_where_the_pre_activation_is_positive(native: Library, inner: int) -> None:
    product = make(30, inner, 8, "affine, signs")
    product.run(native)
    assert product.signs is not None
    assert torch.equal(product.signs, to_words(product.pre_activation(torch.float64) > 0))


def test_winner_codes_name_the_first_largest_pixel_or_none(native: Library) -> None:
    product = make(0, 21, 8, "pool, codes", maps=(3, 4, 6))
    product.left[0, :2, :2] = 1.0               # a tie of all four
    product.run(native)
    rectified = product.pre_activation(torch.float64).relu()
    quads = rectified.unfold(1, 2, 2).unfold(2, 2, 2).flatten(-2).flatten(0, 2)
    wanted = torch.where(quads.amax(-1) > 0, quads.argmax(-1), 4)
    assert product.codes is not None
    assert torch.equal(product.codes.long(), wanted)
    assert 4 in wanted and 3 in wanted


@pytest.mark.parametrize("prologue", ["affine", "pool"])
def test_a_row_does_not_depend_on_the_rows_around_it(native: Library, prologue: str) -> None:
    product = make(0, 40, 56, prologue, "bias", maps=(9, 6, 6)) if prologue == "pool" \
        else make(81, 40, 56, prologue, "bias")
    whole = product.run(native)
    rows = len(whole) // 9
    for part in range(9):
        if product.pooled:
            left = product.left[part:part + 1].contiguous()
        else:
            left = product.left[part * rows:(part + 1) * rows].contiguous()
        alone = Product(product.inner, product.columns, left, product.right,
                        torch.zeros(rows, product.columns), bias=product.bias,
                        scale=product.scale, shift=product.shift).run(native)
        assert torch.equal(alone, whole[part * rows:(part + 1) * rows])


@pytest.mark.parametrize("rows, inner, columns", [(50, 40, 200), (4000, 8, 40), (1500, 8, 8)])
def test_no_bit_depends_on_the_number_of_threads(native: Library, rows: int, inner: int,
                                                 columns: int) -> None:
    one, three = (make(rows, inner, columns, "affine, signs", "mask, add") for _ in range(2))
    assert torch.equal(one.run(native), three.run(native, threads=3))
    assert one.signs is not None and three.signs is not None
    assert torch.equal(one.signs, three.signs)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rows", [60, 4000])
def test_the_product_is_right_with_threads(native: Library, rows: int, threads: int) -> None:
    assert_right(make(rows, 24, 70, "affine", "bias, add"), native, threads)


@pytest.mark.parametrize("prologue", PROLOGUES)
def test_nan_stays_nan(native: Library, prologue: str) -> None:
    product = make(20, 24, 40, prologue, "bias", maps=(1, 8, 10))
    if product.pooled:
        product.left[0, 3, 4, 5] = torch.nan    # of the row 1 * 5 + 2
        row = 7
    else:
        product.left[7, 5] = torch.nan
        row = 7
    out = product.run(native)
    assert out[row].isnan().all()
    assert out.isnan().sum() == product.columns


def test_no_gradient_passes_where_the_sign_bit_is_not_set_even_nan(native: Library) -> None:
    product = make(20, 24, 40, "none", "mask")
    product.left[3] = torch.nan
    out = product.run(native)
    assert product.mask is not None
    assert torch.equal(out[3].isnan(), product.mask[3])
    assert out[~product.mask].eq(0).all()


def test_the_right_side_may_lie_in_memory_in_any_order(native: Library) -> None:
    right = torch.randn(19, 45, generator=torch.Generator().manual_seed(1))
    turned = right.t().contiguous().t()
    assert not turned.is_contiguous()
    assert torch.equal(pack(native, right), pack(native, turned))


@pytest.mark.parametrize("wrong", ["signs without affine", "pool without affine",
                                   "signs with pool", "mask without scale"])
def test_a_call_that_makes_no_sense_is_refused(native: Library, wrong: str) -> None:
    product = make(12, 16, 16, "pool" if "pool" in wrong else "affine", "mask")
    if wrong != "pool without affine" and "signs" in wrong:
        product.signs = torch.zeros(12, 1, dtype=torch.int16)
    if "without affine" in wrong:
        product.scale = product.shift = None
    if wrong == "mask without scale":
        product.out_scale = None
    with pytest.raises(BackendError, match="sanrobust_gemm"):
        product.run(native)


@pytest.mark.parametrize("rows", [1, 15, 130])
@pytest.mark.parametrize("masked", [False, True])
def test_a_product_may_take_the_place_of_what_it_is_made_of(native: Library, rows: int,
                                                            masked: bool) -> None:
    """Forward with affine, ReLU and signs, or backward with a mask, in the first of 40 columns."""
    random = torch.Generator().manual_seed(rows)
    inner, threads = 24, 2
    whole = torch.randn(rows, 40, generator=random)
    right, scale, shift = (torch.randn(*size, generator=random)
                           for size in ((inner, inner), (inner,), (inner,)))
    packed = torch.empty(native.packed_size(inner, inner))
    native.call("sanrobust_pack", PackArgs(inner=inner, columns=inner, b=right, row_stride=inner,
                                           column_stride=1, packed=packed))
    signs = torch.randint(-2 ** 15, 2 ** 15, (rows, 2), generator=random, dtype=torch.int16)
    given = whole[:, :inner].double()
    if masked:
        how = dict(out_scale=scale, out_signs=signs)
        bits = (signs.repeat_interleave(16, 1).int() >> torch.arange(16).repeat(2)) & 1
        wanted = given @ right.double() * scale * bits[:, :inner]
    else:
        how = dict(in_scale=scale, in_shift=shift, in_signs=signs)
        wanted = (given * scale + shift).relu() @ right.double()
    rest = whole[:, inner:].clone()
    native.call("sanrobust_gemm", GemmArgs(rows=rows, inner=inner, columns=inner, threads=threads,
                                           beside=40 - inner, a=whole, packed=packed, out=whole,
                                           **how))
    torch.testing.assert_close(whole[:, :inner].double(), wanted, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole[:, inner:], rest)
