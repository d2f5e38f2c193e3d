"""Counting: exact figures, whatever computes them, and shares that sum up."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from attention_cases import needs_native
from conftest import Command
from sanrobust.complexity.counter import count
from sanrobust.complexity.models import count_model
from sanrobust.complexity.settings import CONVENTIONS, Convention
from sanrobust.design import PAIRWISE, PATCHWISE, AttentionConfig
from sanrobust.errors import ModelError, UnknownNameError
from sanrobust.kernels import relations
from sanrobust.kernels.backends import use_backend
from sanrobust.kernels.relations import Relation
from sanrobust.registry import Registry
from sanrobust.zoo.build import build
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.forms import imagenet_config, small_config

# What util/complexity.py of the paper's official code prints for batch 1, to the last unit.
OFFICIAL = {
    "san10-pair": 2_155_268_622, "san15-pair": 3_022_716_308, "san19-pair": 3_844_152_602,
    "san10-patch": 1_865_421_568, "san15-patch": 2_582_850_560, "san19-patch": 3_258_984_704,
}
LAYERS = (2, 1, 2, 4, 1)


@pytest.mark.parametrize("name", OFFICIAL)
def test_the_released_networks_count_as_in_the_official_code(name: str) -> None:
    assert count_model(name).cost.flops == OFFICIAL[name]


def macs_by_hand(pairwise: bool) -> int:
    """Multiply-adds of SAN10 by its description alone: 1x1 layers, aggregation, classifier."""
    total, width, side = 3 * 64 * 224 ** 2, 64, 224
    for stage, (channels, blocks) in enumerate(zip((64, 256, 512, 1024, 2048), LAYERS)):
        side //= 2
        pixels, around = side ** 2, 9 if stage == 0 else 49
        relation, value, groups = channels // 16, channels // 4, channels // 32
        block = 2 * channels * relation + 2 * channels * value + around * value
        if pairwise:
            block += 2 * 2 + around * ((relation + 2) * relation + relation * groups)
        else:
            block += relation * (around + 1) * groups + groups * groups * around
        total += pixels * (width * channels + blocks * block)
        width = channels
    return total + 2048 * 1000


@pytest.mark.parametrize(("name", "pairwise"), [("san10-pair", True), ("san10-patch", False)])
def test_mac_counts_multiply_adds_alone(name: str, pairwise: bool) -> None:
    assert count_model(name, convention="mac").cost.flops == macs_by_hand(pairwise)


def test_paper_counts_bias_normalisation_activation_and_pooling_of_a_convolution_too() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, groups=1), nn.BatchNorm2d(8),
                            nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8 * 4, 5))
    values = 8 * 4 * 4
    products = values * 3 * 9 + 8 * 4 * 5
    assert count(network, img_size=8, convention="mac").flops == products
    assert count(network, img_size=8).flops == products + values * (1 + 2 + 1 + 1)


def test_a_grouped_and_a_transposed_convolution_count_their_real_products() -> None:
    network = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False),
                            nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2, bias=False))
    products = 6 * 6 * 6 * 9 + 6 * 6 * 6 * 2 * 4
    assert count(network, img_size=8).flops == products


FUSED = [PAIRWISE, PATCHWISE, replace(PAIRWISE, relation="summation"),
         replace(PAIRWISE, position="none")]
COMPOSED = [replace(PAIRWISE, relation="dot", position="absolute"),
            replace(PATCHWISE, relation="clique", mapping="LRLRL")]


@needs_native
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("design", FUSED + COMPOSED, ids=str)
def test_kernels_that_fuse_count_as_the_plain_formulation(
        design: AttentionConfig, convention: Convention) -> None:
    config = SanConfig(layers=(1, 1), design=design, footprints=(3, 5), widths=(32, 64),
                       pools=(True, True), num_classes=4)
    counts = {}
    for backend in ("native", "reference"):
        with use_backend(backend):
            counts[backend] = count(build(config), img_size=32, convention=convention)
    with torch.device("meta"):
        network = build(config)
    counts["meta"] = count(network, img_size=32, convention=convention)
    assert counts["native"] == counts["reference"] == counts["meta"]


@needs_native
def test_the_native_kernels_are_really_fused_where_the_two_counts_are_compared() -> None:
    from torch.utils.flop_counter import FlopCounterMode
    network = build(small_config("san10-pair")).eval()
    with use_backend("native"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 32, 32))
    assert torch.ops.sanrobust.pairwise_attention in counter.get_flop_counts()["Global"]


def test_a_relation_counts_what_its_entry_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def costing(flops: int) -> Relation:
        return Relation("pairwise", "test", lambda sizes: sizes.channels,
                        lambda local, query, key: (local.subtraction(query, key),),
                        counted=lambda sizes: flops)
    totals = []
    for flops in (0, 7):
        known: Registry[Relation] = Registry("relation", listing="")
        known.add("test", costing(flops))
        monkeypatch.setitem(relations.RELATIONS, "pairwise", known)
        config = SanConfig(layers=(1,), design=replace(PAIRWISE, relation="test"),
                           footprints=(3,), widths=(32,), pools=(False,), num_classes=4)
        totals.append(count(build(config), img_size=8))
    assert totals[1].flops - totals[0].flops == 7 * 8 * 8
    assert all(sum(stage.flops for stage in each.stages) == each.flops for each in totals)


NAMES = ["san10-pair", "san10-patch.untrained-small", "resnet26", "torchvision/squeezenet1_1",
         "torchvision/vit_b_16", "timm/convnext_atto"]


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_stages_sum_to_the_total(name: str, convention: Convention) -> None:
    cost = count_model(name, convention=convention).cost
    assert sum(stage.flops for stage in cost.stages) == cost.flops > 0
    assert sum(stage.parameters for stage in cost.stages) == cost.parameters > 0


def test_a_stage_holds_its_transition_and_its_blocks() -> None:
    stages = {stage.name: stage for stage in count_model("san10-pair").cost.stages}
    assert list(stages) == ["stem", *(f"stage {number}" for number in range(5)), "head"]
    assert stages["stage 1"].output == (256, 56, 56)
    assert stages["head"].output == (1000,)
    # 1x1 convolution of 3 to 64 channels without bias, normalisation and ReLU.
    assert stages["stem"].flops == 224 ** 2 * 64 * (3 + 2 + 1)
    # Average pooling of 7x7 maps and the classifier.
    assert stages["head"].flops == 2048 * 49 + 2048 * 1000


def test_stages_of_a_resnet_are_its_groups() -> None:
    stages = {stage.name: stage for stage in count_model("resnet26").cost.stages}
    assert list(stages) == ["stem", "stage 1", "stage 2", "stage 3", "stage 4", "head"]
    # 7x7 convolution, normalisation and ReLU at half size, then a pooling.
    assert stages["stem"].flops == 112 ** 2 * 64 * (147 + 2 + 1 + 1)


def test_parameters_of_pairwise_attention_do_not_depend_on_the_image_but_flops_do() -> None:
    large, small = count_model("san10-pair", img_size=224), count_model("san10-pair", img_size=128)
    assert large.cost.parameters == small.cost.parameters
    assert large.cost.flops > 2 * small.cost.flops


def test_the_image_is_by_default_the_models_own() -> None:
    assert count_model("san10-pair.untrained-small").img_size == 32
    assert count_model("timm/convnext_atto").img_size == 224


def test_counting_leaves_the_network_as_it_was() -> None:
    network = build(small_config("san10-patch")).train()
    network.get_submodule("layer1").eval()
    before = [module.training for module in network.modules()]
    statistics = network.state_dict()["bn0.running_mean"].clone()
    count(network, img_size=32)
    assert [module.training for module in network.modules()] == before
    assert torch.equal(network.state_dict()["bn0.running_mean"], statistics)
    assert not any(module._forward_hooks or module._forward_pre_hooks
                   for module in network.modules())


def test_counting_a_large_network_computes_nothing() -> None:
    with torch.device("meta"):
        network = build(imagenet_config("san19-patch"))
    assert all(parameter.is_meta for parameter in network.parameters())
    assert count(network, img_size=224).parameters == 20_518_470


class Attending(nn.Module):
    """Images as sequences of 16 tokens that are compared with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = images.mean(1).flatten(1).unflatten(1, (16, -1))
        products = torch.bmm(tokens, tokens.transpose(1, 2))
        logits: Tensor = self.fc(products.mean(1))
        return logits


class Looking(Attending):
    """What it computes depends on values, which shapes alone do not have."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + 1 if images.sum().item() > 0 else images)


class Picky(nn.Module):
    """Takes images of 16x16 pixels only."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 16 * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(images.flatten(1))
        return logits


@pytest.fixture
def made() -> Iterator[str]:
    """A module of ours with networks from elsewhere."""
    module = ModuleType("made_for_counting")
    for kind in (Attending, Looking, Picky):
        setattr(module, kind.__name__, kind)
    sys.modules[module.__name__] = module
    yield module.__name__
    del sys.modules[module.__name__]


@pytest.mark.parametrize("kind", ["Attending", "Looking"])
def test_products_of_features_count_as_macs_but_not_in_the_papers_convention(
        made: str, kind: str) -> None:
    # 3 x 8 x 8 values averaged and 16 x 16 products averaged, and the classifier.
    averages, classifier = 3 * 64 + 16 * 16, 160
    counted = count_model(f"{made}:{kind}", img_size=8)
    assert counted.cost.flops == averages + classifier
    products = 16 * 16 * 4
    macs = count_model(f"{made}:{kind}", img_size=8, convention="mac")
    assert macs.cost.flops == products + classifier


def test_an_image_that_a_network_cannot_take_is_an_error_with_what_to_do(made: str) -> None:
    assert count_model(f"{made}:Picky", img_size=16).cost.parameters == 7690
    with pytest.raises(ModelError, match="must take images of 17x17.*--img-size"):
        count_model(f"{made}:Picky", img_size=17)


@pytest.mark.parametrize("name", ["timm/volo_d1_224", "torchvision/vit_b_32"])
def test_a_network_that_a_library_builds_for_a_size_is_counted_at_another(name: str) -> None:
    own, other = count_model(name), count_model(name, img_size=64)
    assert (own.img_size, other.img_size) == (224, 64)
    assert other.cost.flops < own.cost.flops / 4 and other.cost.parameters < own.cost.parameters


def test_an_image_smaller_than_the_footprints_is_an_error() -> None:
    with pytest.raises(ModelError, match="at least 128x128"):
        count_model("san10-pair", img_size=96)


def test_an_unknown_model_is_answered_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean san10-pair"):
        count_model("san01-pair")


def test_the_command_prints_models_and_their_stages(command: Command) -> None:
    result = command("complexity", "-m", "san10-pair", "--stages")
    assert result.exit_code == 0
    lines = {tuple(line.split()[2:4]): line.split() for line in result.output.splitlines()
             if line.startswith("san10-pair")}
    assert lines[("total", "10.532")][-1] == "2.155"
    assert lines[("stage", "1")][-1] == "0.281"


def test_the_command_says_which_convention_it_counts(command: Command) -> None:
    result = command("complexity", "-m", "san10-patch", "--convention", "mac")
    assert "MACs (G)" in result.output and "1.791" in result.output
    assert "convention mac" in " ".join(result.output.split())


@pytest.mark.parametrize(("words", "message"), [
    (("--table", "4", "-m", "san10-pair"), "--model is given too"),
    (("--table", "4", "--img-size", "128"), "--img-size is given too"),
    (("--table", "4", "--convention", "mac", "--stages"), "--convention and --stages is given"),
    (("--table", "2"), "'2' is not one of"),
    (("--convention", "flops"), "'flops' is not one of"),
    (("-m", "san10-pear"), "did you mean san10-pair"),
])
def test_a_bad_value_is_one_sentence(command: Command, words: tuple[str, ...],
                                     message: str) -> None:
    result = command("complexity", *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_count_is_written_where_it_is_asked_for(command: Command, tmp_path: Path) -> None:
    assert command("complexity", "-m", "san10-pair", "--out", tmp_path).exit_code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"complexity-models.{suffix}" for suffix in ("csv", "md", "tex")]
    text = (tmp_path / "complexity-models.csv").read_text("utf-8")
    assert text == ("model,img_size,convention,params,flops,uncounted\n"
                    "san10-pair,224,paper,10531848,2155268622,add softmax\n")
