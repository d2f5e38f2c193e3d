"""SANs of every design: the published sizes, training, gradients, and what cannot be folded."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from sanrobust.bench.models import contends
from sanrobust.bench.settings import COMPILED, PLAIN, UNFOLD
from sanrobust.bench.unfold import compute_by, unfold_attention
from sanrobust.design import DEFAULTS, PAIRWISE, PATCHWISE, AttentionConfig
from sanrobust.zoo.build import build, parameter_count
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.folded import refusal
from sanrobust.zoo.forms import small_config

SAN10 = (2, 1, 2, 4, 1)
# Parameters in millions of SAN10 with 1000 classes: Tables 4 to 8 to the digits printed there.
PUBLISHED = [
    (PAIRWISE, {}, 10.532),
    (PAIRWISE, {"relation": "summation"}, 10.532),
    (PAIRWISE, {"relation": "hadamard"}, 10.532),
    (PAIRWISE, {"relation": "concatenation"}, 10.568),
    (PAIRWISE, {"relation": "dot"}, 10.496),
    (PATCHWISE, {}, 11.841),
    (PATCHWISE, {"relation": "star"}, 10.930),
    (PATCHWISE, {"relation": "clique"}, 11.514),
    (PAIRWISE, {"mapping": "L"}, 10.495),
    (PAIRWISE, {"mapping": "LRLRL"}, 10.568),
    (PATCHWISE, {"mapping": "L"}, 53.499),
    (PATCHWISE, {"mapping": "LRLRL"}, 12.737),
    (PAIRWISE, {"transforms": 1}, 9.516),
    (PAIRWISE, {"transforms": 2}, 9.970),
    (PATCHWISE, {"transforms": 1}, 13.413),
    (PATCHWISE, {"transforms": 2}, 11.260),
    (PAIRWISE, {"position": "none"}, 10.531),
    (PAIRWISE, {"position": "absolute"}, 10.532),
]
FOOTPRINTS = [(PAIRWISE, side, 10.532) for side in (3, 5, 9, 11)] + [
    (PATCHWISE, 3, 10.743), (PATCHWISE, 5, 11.182), (PATCHWISE, 9, 12.720),
    (PATCHWISE, 11, 13.819)]
CHANGES = [(base, changes) for base, changes, _ in PUBLISHED]


def named(value: object) -> str | None:
    if isinstance(value, AttentionConfig):
        return value.attention
    if isinstance(value, dict):
        return "-".join(map(str, value.values())) or "released"
    return None


@pytest.mark.parametrize(("base", "changes", "millions"), PUBLISHED, ids=named)
def test_san10_has_the_published_parameters(base: AttentionConfig, changes: dict[str, object],
                                            millions: float) -> None:
    count = parameter_count(SanConfig(layers=SAN10, design=replace(base, **changes)))
    assert round(count / 1e6, 3) == millions


@pytest.mark.parametrize(("design", "side", "millions"), FOOTPRINTS, ids=named)
def test_san10_of_each_footprint_has_the_published_parameters(design: AttentionConfig, side: int,
                                                              millions: float) -> None:
    count = parameter_count(SanConfig(layers=SAN10, design=design, footprints=(3, *[side] * 4)))
    assert round(count / 1e6, 3) == millions


def tiny(design: AttentionConfig) -> nn.Module:
    """Two stages on 8x8 images, with footprints of 3 and 5."""
    torch.manual_seed(0)
    return build(SanConfig(layers=(1, 1), design=design, footprints=(3, 5), widths=(32, 64),
                           pools=(False, True), num_classes=4))


def some_images() -> Tensor:
    return torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("base", "changes"), CHANGES, ids=named)
def test_the_loss_of_every_design_falls_in_a_few_steps(base: AttentionConfig,
                                                       changes: dict[str, object]) -> None:
    network, images, labels = tiny(replace(base, **changes)), some_images(), torch.arange(8) % 4
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(("base", "changes"), CHANGES, ids=named)
def test_pixels_of_every_design_have_finite_gradients(base: AttentionConfig,
                                                      changes: dict[str, object]) -> None:
    network = tiny(replace(base, **changes)).eval().requires_grad_(False)
    images = some_images().requires_grad_()
    grad, = torch.autograd.grad(network(images).square().sum(), images)
    assert grad.isfinite().all() and grad.abs().amax((1, 2, 3)).min() > 0


@pytest.mark.parametrize(("base", "changes"), CHANGES, ids=named)
def test_what_is_folded_and_what_has_no_fused_kernels(
        base: AttentionConfig, changes: dict[str, object]) -> None:
    network = tiny(replace(base, **changes)).eval()
    reason = refusal(network, torch.device("cpu"))
    if base == PATCHWISE and changes == {"mapping": "L"}:
        assert reason == "its patchwise attention has no fused kernels: mapping=L"
    else:
        assert reason is None or "native" in reason


@pytest.mark.parametrize(("base", "changes"), CHANGES, ids=named)
def test_the_unfold_formulation_stands_for_the_released_designs_alone(
        base: AttentionConfig, changes: dict[str, object]) -> None:
    network = tiny(replace(base, **changes)).eval()
    assert contends(UNFOLD, network) is contends(COMPILED, network) is not changes
    assert contends(PLAIN, network)
    assert len(compute_by(unfold_attention, network)) == (0 if changes else 2)


@pytest.mark.parametrize("attention", ["scalar", "sasa"])
def test_scalar_attention_is_folded_without_absolute_positions(attention: str) -> None:
    design = replace(DEFAULTS[attention], heads=2)
    reason = refusal(tiny(design).eval(), torch.device("cpu"))
    assert reason is None or "native" in reason
    assert refusal(tiny(replace(design, position="absolute")).eval(),
                   torch.device("cpu")) == "its queries have absolute positions"


@pytest.mark.parametrize("name", ["san10-pair", "san10-pair(relation=concatenation)", "san10-patch",
                                  "san10-patch(relation=star)", "san10-patch(relation=clique)",
                                  "san10-pair(relation=summation)", "san10-pair(relation=dot)",
                                  "san10-sasa", "sasa26"])
def test_a_network_can_be_pickled_whole(name: str) -> None:
    torch.manual_seed(0)
    network, images = build(small_config(name)).eval(), torch.rand(1, 3, 32, 32)
    again = pickle.loads(pickle.dumps(network))
    with torch.no_grad():
        assert torch.equal(again(images), network(images))
