"""The operators of self-attention over local footprints, with every argument check.

Letters: B images, C channels, M weight groups, R relation channels, O value channels, P position
channels, K2 = footprint squared neighbours (row by row, the order of
``torch.nn.functional.unfold``), H and W map pixels, L = H' * W' output positions (row by row).
Source: Zhao, Jia and Koltun, CVPR 2020, Section 3. Maps are floating tensors of one dtype on
one device; a footprint is the side of a square and odd.

All functions raise UsageError when an argument breaks a rule, UnknownNameError when no backend
has the name given and BackendError when the backend insisted on cannot compute the call.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import cast, get_args

from torch import Tensor, nn

from sanrobust.errors import UsageError
from sanrobust.kernels import learned_stem, reference
from sanrobust.kernels.backends import choose, use_backend
from sanrobust.kernels.calls import Call, Comparison
from sanrobust.kernels.plain import PaddingMode, Window
from sanrobust.kernels.relations import Relation


def aggregation(value: Tensor, weight: Tensor, *, footprint: int, stride: int = 1,
                dilation: int = 1, padding_mode: PaddingMode = "reflect",
                backend: str | None = None) -> Tensor:
    """Sum each position's neighbours under the weights of that position (equation 1).

    y[b, c, i] = sum over n of weight[b, c % M, n, i] * padded value[b, c, neighbour n of i].

    Args:
        value: (B, O, H, W), O a multiple of M.
        weight: (B, M, K2, L).

    Returns (B, O, H', W') with H' = (H - 1) // stride + 1.
    """
    window = make_window(footprint, stride, dilation, padding_mode)
    _require_maps(window, value=value)
    _require_alike(value=value, weight=weight)
    _require_weight(value, weight, window)
    call = Call("aggregation", (value, weight), window)
    return choose(call, backend=backend).aggregation(value, weight, window)


def subtraction(query: Tensor, key: Tensor, *, footprint: int, stride: int = 1, dilation: int = 1,
                padding_mode: PaddingMode = "reflect", backend: str | None = None) -> Tensor:
    """Return the subtraction relation, query at the centre minus key at each neighbour.

    Args:
        query, key: (B, R, H, W).

    Returns (B, R, K2, L).
    """
    window = make_window(footprint, stride, dilation, padding_mode)
    _require_maps(window, query=query, key=key)
    _require_alike(query=query, key=key)
    _require_shape("key", key, tuple(query.shape))
    call = Call("subtraction", (query, key), window)
    return choose(call, backend=backend).subtraction(query, key, window)


def dot_product(query: Tensor, key: Tensor, *, groups: int = 1, footprint: int, stride: int = 1,
                dilation: int = 1, padding_mode: PaddingMode = "reflect",
                backend: str | None = None) -> Tensor:
    """Return the products of the query at the centre with the key at each neighbour.

    product[b, g, n, i] = sum over the channels c with c % G = g of query[b, c, i] * padded
    key[b, c, neighbour n of i]. One group gives the dot product, as many groups as channels the
    Hadamard product (Section 3.1).

    Args:
        query, key: (B, R, H, W).
        groups: G, a divisor of R.

    Returns (B, G, K2, L).
    """
    window = make_window(footprint, stride, dilation, padding_mode)
    _require_maps(window, query=query, key=key)
    _require_alike(query=query, key=key)
    _require_shape("key", key, tuple(query.shape))
    _require(groups >= 1 and query.shape[1] % groups == 0,
             f"channels of query ({query.shape[1]}) must be a multiple of the groups",
             f"there are {groups}", "change one of the two")
    call = Call("dot_product", (query, key), window)
    return choose(call, backend=backend).dot_product(query, key, groups, window)


def pair_products(query: Tensor, key: Tensor, *, footprint: int,
                  padding_mode: PaddingMode = "reflect", backend: str | None = None) -> Tensor:
    """Return the products of the query at each neighbour j with the key at each neighbour k.

    They are the clique relation (Section 3.2), j by j.

    Args:
        query, key: (B, R, H, W).

    Returns (B, K2 * K2, 1, L).
    """
    window = make_window(footprint, 1, 1, padding_mode)
    _require_maps(window, query=query, key=key)
    _require_alike(query=query, key=key)
    _require_shape("key", key, tuple(query.shape))
    call = Call("pair_products", (query, key), window)
    return choose(call, backend=backend).pair_products(query, key, window)


def neighbours(maps: Tensor, *, footprint: int, stride: int = 1, dilation: int = 1,
               padding_mode: PaddingMode = "reflect", backend: str | None = None) -> Tensor:
    """Gather the neighbours of every position: (B, C, H, W) to (B, C, K2, L)."""
    window = make_window(footprint, stride, dilation, padding_mode)
    _require_maps(window, maps=maps)
    _require_alike(maps=maps)
    call = Call("neighbours", (maps,), window)
    return choose(call, backend=backend).neighbours(maps, window)


def pairwise_attention(query: Tensor, key: Tensor, value: Tensor, position: Tensor,
                       mapping: nn.Module, *, footprint: int,
                       padding_mode: PaddingMode = "reflect", affine: bool = False,
                       compare: Comparison | None = None, absolute: bool = False,
                       backend: str | None = None) -> Tensor:
    """Attend with weights from pairs of positions (equation 2).

    The weights are softmax over the neighbours j of
    mapping([query_i - key_j, position_i - position_j]).

    Args:
        query, key: (B, R, H, W).
        value: (B, O, H, W), O a multiple of M.
        position: encoded coordinates (1, P, H, W).
        mapping: maps relations (B, R + P, K2, L) to weights (B, M, K2, L).
        compare: the relation in place of query_i - key_j, of N channels in place of R.
        absolute: whether position_j takes the place of position_i - position_j.
        affine: whether the position stays affine in the coordinates whatever it is made of becomes,
            as a 1x1 convolution of them does. Its gradient then may come at its corners alone.

    Returns (B, O, H, W).
    """
    window = make_window(footprint, 1, 1, padding_mode)
    _require_attention(window, query, key, value)
    _require_alike(query=query, position=position)
    _require_shape("position", position, (1, position.shape[1], *query.shape[2:]))
    if compare is not None:
        _require_comparison(compare, query, window)
    call = Call("pairwise_attention", (query, key, value, position), window, mapping)
    chosen = choose(call, backend=backend)
    # What compares asks for backends itself.
    with use_backend(chosen.name) if compare is not None and backend else nullcontext():
        return chosen.pairwise_attention(query, key, value, position, mapping, window,
                                         affine=affine, compare=compare, absolute=absolute)


def patchwise_attention(query: Tensor, key: Tensor, value: Tensor, mapping: nn.Module, *,
                        footprint: int, padding_mode: PaddingMode = "reflect",
                        backend: str | None = None) -> Tensor:
    """Attend with weights from the whole patch (equation 4, concatenation relation).

    Args:
        query, key: (B, R, H, W).
        value: (B, O, H, W), O a multiple of M.
        mapping: maps patches (B, R * (1 + K2), 1, L), the query's channels first, then the
            neighbours of the key channel by channel, to weights (B, M * K2, 1, L).

    Returns (B, O, H, W).
    """
    window = make_window(footprint, 1, 1, padding_mode)
    _require_attention(window, query, key, value)
    call = Call("patchwise_attention", (query, key, value), window, mapping)
    return choose(call, backend=backend).patchwise_attention(query, key, value, mapping, window)


def patchwise_sum(relation: Tensor, value: Tensor, mapping: nn.Module, *, footprint: int,
                  padding_mode: PaddingMode = "reflect", backend: str | None = None) -> Tensor:
    """Attend with weights from any relation of a patch (equation 4): mapping(relation).

    Args:
        relation: (B, N, 1, H * W).
        value: (B, O, H, W), O a multiple of M.
        mapping: maps relations (B, N, 1, L) to weights (B, M * K2, 1, L).

    Returns (B, O, H, W).
    """
    window = make_window(footprint, 1, 1, padding_mode)
    _require_maps(window, value=value)
    for name, each in (("value", value), ("relation", relation)):
        _require_floating(name, each)
    height, width = value.shape[2:]
    _require(relation.dim() == 4 and len(relation) == len(value)
             and relation.shape[2:] == (1, height * width),
             f"relation must have the shape ({len(value)}, N, 1, {height * width})",
             f"it is {tuple(relation.shape)}", "compute it of maps as large as value")
    call = Call("patchwise_sum", (value, relation), window, mapping)
    return choose(call, backend=backend).patchwise_sum(relation, value, mapping, window)


def local_attention(query: Tensor, key: Tensor | None, value: Tensor,
                    embedding: Tensor | None = None, *, heads: int = 1, footprint: int,
                    stride: int = 1, padding_mode: PaddingMode = "reflect",
                    backend: str | None = None) -> Tensor:
    """Attend by the softmax over neighbours j of q_i.k_j, of q_i.r_ij, or of their sum.

    Head n holds the channels c with c % N = n. r joins an embedding of j's row offset and one of
    its column offset, half of the query's channels each (equation 6 and SASA, see ``local``).

    Args:
        query: (B, R, H, W), R a multiple of N, with an embedding of 2 * N.
        key: as the query; None compares no features.
        value: (B, O, H, W), O a multiple of N.
        embedding: (2, K, R / 2) for a footprint of side K: of row offsets, of column offsets.
        heads: N.

    Returns (B, O, H', W').
    """
    window = make_window(footprint, stride, 1, padding_mode)
    _require_local(window, query, key, value, embedding, heads)
    call = Call("local_attention", tuple(_given(query, key, value, embedding)), window)
    return choose(call, backend=backend).local_attention(query, key, value, embedding, heads,
                                                         window)


def local_weights(query: Tensor, key: Tensor | None, embedding: Tensor | None = None, *,
                  heads: int = 1, footprint: int, stride: int = 1,
                  padding_mode: PaddingMode = "reflect", backend: str | None = None) -> Tensor:
    """Return the weights (B, N, K2, L) of `local_attention`."""
    window = make_window(footprint, stride, 1, padding_mode)
    _require_local(window, query, key, query, embedding, heads)
    call = Call("dot_product", tuple(_given(query, key)), window)
    return reference.local_weights(query, key, embedding, heads, window,
                                   backend=choose(call, backend=backend).name)


def norm_relu(norm: nn.Module, features: Tensor, *, pooled: bool = False,
              backend: str | None = None) -> Tensor:
    """Return the ReLU of a normalisation of ``features`` (B, C, ...).

    Where ``pooled`` it returns its maxima over squares of 2x2 pixels of (B, C, H, W). In training
    one kernel makes it all, where there is one, and moves the running statistics.
    """
    return reference.norm_relu(norm, features, pooled=pooled,
                               backend=_of_training(norm, features, backend))


def stem(conv: nn.Module, norm: nn.Module, images: Tensor, *, pooled: bool,
         backend: str | None = None) -> Tensor:
    """Return `norm_relu` of a convolution of ``images`` (B, 3, H, W).

    In training one kernel makes it all where it is 1x1 and pooled and the images need no gradient.
    """
    name = _of_training(norm, images, backend)
    if pooled and learned_stem.takes(conv, norm, images, name):
        return learned_stem.stem(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm), images,
                                 backend=name)
    return norm_relu(norm, conv(images), pooled=pooled, backend=backend)


def mapped(mapping: nn.Module, relation: Tensor, *, backend: str | None = None) -> Tensor:
    """Return what gamma makes of a relation (B, N, K2, L), each normalisation as `norm_relu`."""
    return reference.mapped(mapping, relation, backend=_of_training(mapping, relation, backend))


def make_window(footprint: int, stride: int = 1, dilation: int = 1,
                padding_mode: PaddingMode = "reflect") -> Window:
    """Return a checked window; raises UsageError when it is not one."""
    _require(footprint >= 1 and footprint % 2 == 1, "the footprint must be odd and positive",
             f"it is {footprint}", "use 3, 5 or 7")
    for name, setting in (("stride", stride), ("dilation", dilation)):
        _require(setting >= 1, f"the {name} must be at least 1", f"it is {setting}",
                 f"leave {name} at 1")
    modes = get_args(PaddingMode)
    _require(padding_mode in modes, "the padding mode must be reflect or zeros",
             f"it is {padding_mode!r}", f"use padding_mode={modes[0]!r}")
    return Window(footprint, stride, dilation, padding_mode)


def _require(holds: bool, rule: str, seen: str, hint: str) -> None:
    if not holds:
        raise UsageError(rule, seen=seen, hint=hint)


def _of_training(module: nn.Module, features: Tensor, backend: str | None) -> str:
    """Return who computes normalisations; in evaluation they are torch's and nobody is asked."""
    if not module.training:
        return reference.NAME
    return choose(Call("norm_relu", (features,), Window(1)), backend=backend).name


def _given(*tensors: Tensor | None) -> list[Tensor]:
    return [each for each in tensors if each is not None]


def _require_local(window: Window, query: Tensor, key: Tensor | None, value: Tensor,
                   embedding: Tensor | None, heads: int) -> None:
    _require_attention(window, query, query if key is None else key, value)
    _require(isinstance(heads, int), "the heads must be a whole number", f"they are {heads!r}",
             "use heads=1")
    _require(query.shape[1] > 0, "queries must have at least one channel", "they have none",
             "use wider maps")
    _require(key is not None or embedding is not None, "there must be a key or an embedding",
             "there is neither", "give one of them")
    unit = heads if embedding is None else 2 * heads
    _require(heads >= 1 and query.shape[1] % unit == 0 and value.shape[1] % heads == 0,
             "channels must be multiples of the heads, those of a query with an embedding of twice "
             "the heads", f"there are {heads} heads, {query.shape[1]} channels of the query and "
             f"{value.shape[1]} of the value", "use another number of heads")
    if embedding is not None:
        _require_alike(query=query, embedding=embedding)
        _require_shape("embedding", embedding, (2, window.footprint, query.shape[1] // 2))


def _require_attention(window: Window, query: Tensor, key: Tensor, value: Tensor) -> None:
    _require_maps(window, query=query, key=key, value=value)
    _require_alike(query=query, key=key, value=value)
    _require_shape("key", key, tuple(query.shape))
    _require_shape("value", value, (query.shape[0], value.shape[1], *query.shape[2:]))


def _require_maps(window: Window, **maps: Tensor) -> None:
    for name, each in maps.items():
        _require(each.dim() == 4, f"{name} must have four dimensions (B, C, H, W)",
                 f"its shape is {tuple(each.shape)}", "add or merge dimensions")
        height, width = each.shape[-2:]
        _require(min(height, width) >= 1, f"{name} must have at least one pixel",
                 f"its shape is {tuple(each.shape)}", "use larger images")
        if window.padding_mode == "reflect":
            side = window.padding + 1
            _require(min(height, width) >= side,
                     f"reflection around a {window.footprint}x{window.footprint} footprint needs "
                     f"maps of at least {side}x{side}", f"{name} is {height}x{width}",
                     "use larger images, a smaller footprint or padding_mode='zeros'")


def _require_alike(**tensors: Tensor) -> None:
    (first_name, first), *others = tensors.items()
    _require_floating(first_name, first)
    for name, each in others:
        for kind, seen, wanted in (("dtype", each.dtype, first.dtype),
                                   ("device", each.device, first.device)):
            _require(seen == wanted, f"{first_name} and {name} must have the same {kind}",
                     f"they have {wanted} and {seen}", f"use {name}.to({first_name}.{kind})")


def _require_floating(name: str, tensor: Tensor) -> None:
    _require(tensor.is_floating_point(), f"{name} must be a floating tensor",
             f"its dtype is {tensor.dtype}", f"convert it with {name}.float()")


def _require_shape(name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    _require(tuple(tensor.shape) == wanted, f"{name} must have shape {wanted}",
             f"its shape is {tuple(tensor.shape)}", "project it from the same maps as the query")


def _require_comparison(compare: Comparison, query: Tensor, window: Window) -> None:
    relation = getattr(compare, "relation", None)
    _require(isinstance(relation, Relation) and relation.family == "pairwise"
             and all(hasattr(compare, each) for each in ("sizes", "window", "fused")),
             "what compares must be a RelationLayer of a pairwise relation", f"it is {compare!r}",
             "use the relation of a PairwiseAttention, or leave compare out to subtract")
    wanted, seen = ((at.footprint, at.padding_mode, channels) for at, channels in (
        (window, query.shape[1]), (compare.window, compare.sizes.channels)))
    _require(seen == wanted, "what compares must have the footprint, padding mode and channels of "
             f"the attention, {wanted}", f"it has {seen}", "make it with the same Window and Sizes")


def _require_weight(value: Tensor, weight: Tensor, window: Window) -> None:
    _require(weight.dim() == 4, "weight must have four dimensions (B, groups, neighbours, "
             "positions)", f"its shape is {tuple(weight.shape)}", "reshape it")
    groups = weight.shape[1]
    _require(groups >= 1 and value.shape[1] % groups == 0,
             f"channels of value ({value.shape[1]}) must be a multiple of the weight groups",
             f"there are {groups}", "change one of the two")
    height, width = window.output_size(value)
    wanted = (value.shape[0], groups, window.neighbours, height * width)
    _require(tuple(weight.shape) == wanted, f"weight must have shape {wanted}",
             f"its shape is {tuple(weight.shape)}",
             "give one weight for each neighbour and output position")
