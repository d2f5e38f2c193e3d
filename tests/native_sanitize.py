"""Runs small cases of the CPU kernels, built with a sanitizer that ends the process at an error.

Started by test_native_sanitize.py in a process of its own, as the sanitizer must be loaded first:
``CXX='g++ -fsanitize=...' python native_sanitize.py FOLDER`` builds the production sources into
FOLDER. Of the tuned widths one is built: all are instances of one template.
"""

from __future__ import annotations

import shutil
import sys
from itertools import product
from pathlib import Path

import torch
from elementary_calls import elementary
from kernel_truth import results, san_case

from sanrobust.kernels import functional
from sanrobust.kernels.modules import PairwiseAttention, PatchwiseAttention
from sanrobust.kernels.native import build, library
from sanrobust.kernels.native.backend import NativeBackend
from sanrobust.kernels.native.kernels import NativeKernels
from sanrobust.kernels.plain import PaddingMode, Window
from sanrobust.zoo.build import build as build_network
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.folded import FoldedSan
from sanrobust.zoo.forms import small_config

WIDTH, WIDTHS = 16, build.RELATIONS
NETWORKS = ("san10-pair", "san10-patch", "san10-pair(relation=concatenation,mapping=LRLRL)",
            "san10-pair(relation=hadamard,mapping=L)", "san10-pair(relation=dot)",
            "san10-pair(position=absolute,transforms=1)", "san10-scalar", "san10-sasa(content=no)",
            "san10-patch(relation=star)", "san10-patch(relation=clique)",
            "san10-patch(mapping=LRLRL)")
THREADS = 3
FLAGS = ("-O0", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas")


def main() -> None:
    """Run everything once, with threads; the sanitizer ends the process at the first error."""
    folder = Path(sys.argv[1])
    build.FLAGS, build.X86_LEVELS, build.RELATIONS = FLAGS, {}, (WIDTH,)
    build.LIBRARIES, build.SOURCES = folder / "lib", sources(folder / "src")
    build.build(build.LIBRARIES)
    assert library.require().name == build.GENERIC and NativeBackend().unavailable() is None
    torch.set_num_threads(THREADS)
    for padding_mode in ("reflect", "zeros"):
        for kind in ("pairwise", "patchwise"):
            results(san_case(kind, WIDTH, 5, 7, 9, padding=padding_mode), torch.float32,
                    threads=THREADS)
            for width in (4, 3):  # planar and generic
                results(san_case(kind, width, 3, 6, 35, padding=padding_mode), torch.float32,
                        threads=THREADS)
        for channels in (3, 8):  # generic and tuned
            scalar(channels, padding_mode)
        for stride, dilation in ((1, 1), (2, 2)):
            elementary(NativeKernels(), Window(3, stride, dilation, padding_mode))
    whole()
    for pixels in (3, 2500):
        features = torch.rand(2, 5, 3, pixels, requires_grad=True)
        for pooled in (False, True):
            functional.norm_relu(torch.nn.BatchNorm2d(5), features, pooled=pooled).sum().backward()
    for relation, padding_mode in product((4, WIDTH), ("reflect", "zeros")):
        train(relation, padding_mode)
    functional.stem(torch.nn.Conv2d(3, 5, 1, bias=False), torch.nn.BatchNorm2d(5),
                    torch.rand(2, 3, 9, 150), pooled=True).sum().backward()
    print("clean")


def sources(folder: Path) -> Path:
    """Copy the production sources, and add what ends the process in place of other widths."""
    shutil.copytree(build.SOURCES, folder)
    text = '#include <cstdlib>\n#include "pairwise.h"\n#include "patchwise.h"\n'
    for kind, args in (("pairwise", "PairwiseArgs"), ("patchwise", "PatchwiseArgs")):
        legs = ("forward", "backward", *(["moments"] if kind == "pairwise" else []))
        for leg, width in product(legs, set(WIDTHS) - {WIDTH}):
            text += (f"template <> void san::{kind}_{leg}_of<{width}>(const {args} &) "
                     "{ abort(); }\n")
    (folder / "others.cpp").write_text(text)
    return folder


def train(relation: int, padding_mode: PaddingMode) -> None:
    """A training step of both operators."""
    for kind in (PairwiseAttention, PatchwiseAttention):
        layer = kind(3, relation_channels=relation, value_channels=4 * relation,
                     weight_groups=relation // 2, footprint=3, padding_mode=padding_mode)
        layer(torch.rand(2, 3, 5, 13)).sum().backward()


def scalar(channels: int, padding_mode: str) -> None:
    """Forward and backward pass of scalar attention, with embeddings and their gradients."""
    maps = torch.rand(2, 2 * channels, 13, 9, requires_grad=True)
    embedding = torch.rand(2, 5, channels, requires_grad=True)
    functional.local_attention(maps, maps, maps, embedding, footprint=5, padding_mode=padding_mode,
                               backend="native").sum().backward()


def whole() -> None:
    """Folded networks: stem, transitions, pooling, products, head, every form of relation."""
    for name in NETWORKS:
        config = small_config(name, 3)
        assert isinstance(config, SanConfig)
        network = build_network(config).eval().requires_grad_(False)
        images = torch.rand(3, 3, 33, 35, requires_grad=True)
        FoldedSan(network)(images).sum().backward()


if __name__ == "__main__":
    main()
