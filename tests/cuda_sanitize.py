"""Runs small cases of the CUDA kernels under the address and undefined-behaviour sanitizers.

Started by test_cuda_shim.py in a process of its own, as the sanitizer must be loaded first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from cuda_cases import make
from cuda_on_cpu import ShimDevice
from elementary_calls import elementary

from sanrobust.kernels.cuda import catalog
from sanrobust.kernels.cuda.kernels import CupyKernels
from sanrobust.kernels.cuda.launch import DELTAS
from sanrobust.kernels.plain import Window

FLAGS = ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")


def main() -> None:
    """Run everything once; the sanitizers end the process at the first error."""
    chosen = [each for each in catalog.general_kernels() if "<float" in each.expression]
    chosen += [each for each in catalog.elementary_kernels()
               if each.expression.endswith(("<float, float, 3>", "<float>"))]
    chosen += [each for each in catalog.narrow_kernels() if each.expression.endswith("<float>")]
    chosen += [each for each in catalog.tuned_kernels() if "<float, 16" in each.expression]
    with tempfile.TemporaryDirectory() as folder:
        kernels = CupyKernels(ShimDevice(Path(folder), chosen, *FLAGS))
        for padding_mode in ("reflect", "zeros"):
            for relation, channels in ((3, 4), (4, 16), (16, 64)):
                attend(kernels, relation, channels, padding_mode)
            for stride, dilation in ((1, 1), (2, 2)):
                elementary(kernels, Window(3, stride, dilation, padding_mode))
    print("clean")


def attend(kernels: CupyKernels, relation: int, channels: int, padding_mode: str) -> None:
    """Forward and backward passes on maps whose sides divide no tile."""
    for kind in ("pairwise", "patchwise"):
        hidden = relation if kind == "pairwise" else max(relation // 2, 1)
        groups = relation // 2 if relation == 16 else 2
        for delta in DELTAS if kind == "pairwise" else ("concatenation",):
            case = make(kind, relation, hidden, groups, channels, 3, padding_mode, 3, 9,
                        delta=delta, by_place=delta == "dot")
            maps, matrices = [each.float() for each in case.maps], case.matrices_of(torch.float32)
            getattr(kernels, kind)(*maps, matrices, case.window)
            getattr(kernels, f"{kind}_backward")(case.grad.float(), *maps, matrices, case.window)


if __name__ == "__main__":
    main()
