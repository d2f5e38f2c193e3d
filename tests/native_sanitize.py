"""Runs small cases of the CPU kernels, built with a sanitizer that ends the process at an error.

Started by test_native_sanitize.py in a process of its own, as the sanitizer must be loaded first:
``CXX='g++ -fsanitize=...' python native_sanitize.py FOLDER`` builds the production sources into
FOLDER. Of the tuned widths one is run: all are instances of one template.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from native_cases import Case, numbers, run_native, tuned_case

from sanrobust.kernels.native import build, library
from sanrobust.kernels.native.backend import NativeBackend
from sanrobust.kernels.native.kernels import NativeKernels
from sanrobust.kernels.plain import Window
from sanrobust.zoo.build import build as build_network
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.folded import FoldedSan
from sanrobust.zoo.forms import small_config

WIDTH = 16
THREADS = 3
FLAGS = ("-O0", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-Wno-unknown-pragmas")


def main() -> None:
    """Run everything once, with threads; the sanitizer ends the process at the first error."""
    build.FLAGS, build.X86_LEVELS = FLAGS, {}
    build.LIBRARIES = Path(sys.argv[1])
    build.build(build.LIBRARIES)
    assert library.require().name == build.GENERIC and NativeBackend().unavailable() is None
    torch.set_num_threads(THREADS)
    for padding_mode in ("reflect", "zeros"):
        for kind in ("pairwise", "patchwise"):
            attend(tuned_case(kind, WIDTH, 5, 7, 9, padding_mode=padding_mode))
            attend(tuned_case(kind, 4, 3, 6, 35, padding_mode=padding_mode))  # planar
            attend(Case(kind, 3, 2, 3, 4, 5, padding_mode=padding_mode))  # generic
        for stride, dilation in ((1, 1), (2, 2)):
            elementary(Window(3, stride, dilation, padding_mode))
    whole()
    print("clean")


def attend(case: Case) -> None:
    """Forward and backward pass of one operator."""
    run_native(case, numbers(case), threads=THREADS)


def elementary(window: Window) -> None:
    """Forward and backward passes of aggregation and subtraction."""
    kernels = NativeKernels()
    value = torch.randn(2, 4, 4, 5)
    height, width = window.output_size(value)
    weight = torch.randn(2, 2, 9, height * width)
    summed = kernels.aggregation(value, weight, window)
    kernels.aggregation_backward(summed, value, weight, window, True, True)
    relation = kernels.subtraction(value, value, window)
    kernels.subtraction_backward(relation, (4, 5), window)


def whole() -> None:
    """A folded network with every layer: stem, transitions, pooling, products, head."""
    config = small_config("san10-pair", 3)
    assert isinstance(config, SanConfig)
    network = build_network(config).eval().requires_grad_(False)
    images = torch.rand(3, 3, 33, 35, requires_grad=True)
    FoldedSan(network)(images).sum().backward()


if __name__ == "__main__":
    main()
