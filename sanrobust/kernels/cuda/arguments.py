"""The structs of ``src/args.cuh``, passed to kernels by value."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p
from typing import Any

from torch import Tensor

REFLECT, ZEROS = 0, 1


def _fields(kind: Any, names: str) -> list[tuple[str, Any]]:
    return [(name, kind) for name in names.split()]


class Map(Structure):
    """A tensor of maps with its strides in elements."""

    _fields_ = [("data", c_void_p), *_fields(c_int64, "image row column channel")]


class Weights(Structure):
    """Weights of the neighbours of every position, with their strides in elements."""

    _fields_ = [("data", c_void_p), *_fields(c_int64, "image group neighbour position")]


class ElementaryArgs(Structure):
    """Arguments of aggregation and subtraction."""

    _fields_ = [*_fields(c_int64, "images height width out_height out_width"),
                *_fields(c_int32, "channels groups footprint stride dilation padding "
                                  "channels_fastest unused"),
                *_fields(Map, "first second out grad"), ("weights", Weights),
                *_fields(c_void_p, "scale shift")]


class PairwiseArgs(Structure):
    """Arguments of fused pairwise attention."""

    _fields_ = [*_fields(c_int64, "images height width"),
                *_fields(c_int32, "relation hidden groups channels footprint padding slots "
                                  "table_per_pixel tile_height tile_width strips "
                                  "table_by_place"),
                *_fields(Map, "query key value out"),
                *_fields(c_void_p, "w1 w1t w2 w2t table offset scale shift alpha signs"),
                *_fields(Map, "grad grad_query grad_key grad_value"),
                *_fields(c_void_p, "logit_grad hidden_grad dots")]


class PatchwiseArgs(Structure):
    """Arguments of fused patchwise attention."""

    _fields_ = [*_fields(c_int64, "images height width"),
                *_fields(c_int32, "relation hidden groups channels footprint padding"),
                *_fields(Map, "query key value out"),
                *_fields(c_void_p, "key_scale key_shift w1 w1t b1 w2 w2t b2 scale shift h"),
                *_fields(Map, "grad grad_query grad_key grad_value"),
                *_fields(c_void_p, "weight_grad hidden_grad")]


def map_of(maps: Tensor) -> Map:
    """Describe maps (B, C, H, W) of any strides."""
    image, channel, row, column = maps.stride()
    return Map(data=maps.data_ptr(), image=image, row=row, column=column, channel=channel)


def weights_of(weight: Tensor) -> Weights:
    """Describe weights (B, M, K2, L) of any strides."""
    image, group, neighbour, position = weight.stride()
    return Weights(data=weight.data_ptr(), image=image, group=group, neighbour=neighbour,
                   position=position)
