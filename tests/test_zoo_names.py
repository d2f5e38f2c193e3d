"""Names of architectures with options: their spelling and what they build."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sanrobust.design import PAIRWISE, AttentionConfig
from sanrobust.errors import UnknownNameError
from sanrobust.kernels import relations
from sanrobust.zoo import catalog, names
from sanrobust.zoo.build import build, parameter_count, parameter_shapes
from sanrobust.zoo.external import is_external
from sanrobust.zoo.families.base import Architecture
from sanrobust.zoo.families.catalog import FAMILIES
from sanrobust.zoo.families.catalog import networks
from sanrobust.zoo.families.resnet import RESNET, ResNetConfig
from sanrobust.zoo.families.san import SanConfig
from sanrobust.zoo.families.sasa import SasaConfig
from sanrobust.zoo.forms import imagenet_config, small_config, smallest_input
from sanrobust.zoo.names import canonical, parse
from sanrobust.zoo.resolve import create_model
from zoo_files import ban_network

HADAMARD = "san10-pair(relation=hadamard)"
SANS = ("san10-pair", "san10-patch", "san10-scalar", "san10-sasa")
# The first network of each family that has its own options.
SHALLOW = tuple({(names.options(network), imagenet_config(network).kind): network
                 for network in reversed(networks())}.values())
LARGE_ALONE = {"san10-sasa(heads=8)", "san10-scalar(heads=4)",
               *(f"sasa26(heads={heads})" for heads in (8, 16, 32)),
               *(f"{network}(footprints=3-7-7-7-{side})" for network in SANS for side in (9, 11))}


def choices() -> Iterator[str]:
    """Every legal value of every option, alone, for one network of each kind; of widths a few."""
    for network in SHALLOW:
        for option in names.options(network):
            for value in ("64", "128") if option.unit else option.values:
                typed = value if option.items == 1 else f"3-7-7-7-{value}"
                yield f"{network}({option.name}={typed})"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ban_network(monkeypatch)
    monkeypatch.setenv("SANROBUST_HOME", str(tmp_path / "home"))


# --- spelling

@pytest.mark.parametrize(("typed", "meant"), [
    ("san10-pair", "san10-pair"),
    ("san10-pair()", "san10-pair"),
    ("san10-pair(footprint=5,position=absolute,relation=hadamard)",
     "san10-pair(relation=hadamard,footprint=5,position=absolute)"),
    (" san10-pair ( relation = hadamard ,  footprint=5 ) .mine",
     "san10-pair(relation=hadamard,footprint=5).mine"),
    ("san10-pair(Relation=Hadamard,mapping=lrlrl)", "san10-pair(relation=hadamard,mapping=LRLRL)"),
    ("san10-pair(relation=subtraction,mapping=LRL,transforms=3,position=relative)", "san10-pair"),
    ("san15-patch(relation=concatenation).untrained", "san15-patch.untrained"),
    ("san10-pair(footprints=3-5-5-5-5)", "san10-pair(footprint=5)"),
    ("san10-pair(footprints=3-5-7-9-11)", "san10-pair(footprints=3-5-7-9-11)"),
    ("san10-scalar(heads=1,position=none)", "san10-scalar"),
    ("sasa26(convolutions=0,content=yes,stem=conv)", "sasa26"),
    ("resnet26(kernel=3)", "resnet26"),
])
def test_every_name_has_one_spelling(typed: str, meant: str) -> None:
    assert canonical(typed) == canonical(meant) == meant


@pytest.mark.parametrize("typed", ["san10-pair(footprint=7)", "san10-sasa(heads=8)",
                                   "sasa26(footprint=7)"])
def test_a_value_that_is_the_default_of_one_form_alone_is_kept(typed: str) -> None:
    assert canonical(typed) == typed
    bare = names.parse(typed).network
    assert imagenet_config(typed) == imagenet_config(bare)
    assert canonical(typed) != bare


def test_spellings_of_all_options_are_stable_and_differ_as_the_networks_do() -> None:
    by_spelling: dict[str, Architecture] = {}
    for typed in choices():
        spelled = canonical(typed)
        assert canonical(spelled) == spelled
        assert by_spelling.setdefault(spelled, imagenet_config(typed)) == imagenet_config(spelled)
    form_dependent = ("footprint=7)", "heads=8)", "footprints=3-7-7-7-7)")
    unlike = [form for name, form in by_spelling.items() if not name.endswith(form_dependent)]
    assert len(unlike) > 50
    assert all(left != right for place, left in enumerate(unlike) for right in unlike[:place])


def test_parts_of_a_name() -> None:
    parsed = parse("san10-pair(footprint=5).a.b")
    assert (parsed.network, parsed.tag) == ("san10-pair", "a.b")
    assert (parsed.architecture, str(parsed)) == ("san10-pair(footprint=5)",
                                                  "san10-pair(footprint=5).a.b")
    assert (parsed.value("footprint"), parsed.value("relation")) == ("5", "subtraction")


LEGAL_PAIR = "relation, mapping, transforms, footprint, footprints, position, width"


@pytest.mark.parametrize(("typed", "answer"), [
    ("san10-pair(relatoin=dot)", r"there is none called 'relatoin': did you mean relation\? they "
                                 rf"are {LEGAL_PAIR}"),
    ("san10-pair(relation=hadamar)", rf"one of {', '.join(relations.names('pairwise'))}, but it "
                                     r"is 'hadamar': did you mean hadamard\?"),
    ("san10-patch(relation=dot)", "one of concatenation, star, clique"),
    ("san10-patch(position=none)", "position means nothing to it: they are relation, mapping"),
    ("san10-pair(heads=4)", f"heads means nothing to it: they are {LEGAL_PAIR}"),
    ("san10-sasa(relation=dot)", "relation means nothing to it: they are footprint"),
    ("san10-scalar(position=relative)", "position of san10-scalar must be one of none"),
    ("resnet26(footprint=5)", "footprint means nothing to it: they are kernel, width$"),
    ("san10-pair(mapping=LR)", "one of L, LRL, LRLRL"),
    ("san10-pair(footprint=4)", r"one of 3, 5, 7, 9, 11, .* 'san10-pair\(footprint=3\)'"),
    ("san10-pair(footprints=3-5)", "must be 5 of 3, 5, 7, 9, 11, joined by -"),
    ("san10-pair(footprints=3-5-5-5-5,footprint=5)", "footprints must be given once"),
    ("san10-pair(relation=dot,relation=star)", "relation is given twice"),
    ("san10-pair(relation=dot,Relation=dot)", "relation is given twice"),
    ("san10-sasa(content=no,position=none)", "must have relative position"),
    ("san10-pair(relation)", "must be written option=value"),
    ("san10-pair(relation=dot,)", "must be written option=value"),
    ("san10-pair(=dot)", "must be written option=value"),
    ("san10-pair(relation=dot", "one pair of parentheses"),
    ("san10-pair)", "one pair of parentheses"),
    ("san10-pair((relation=dot))", "one pair of parentheses"),
    ("san10-pair(relation=dot)(mapping=L)", "one pair of parentheses"),
    ("san10-pair(relation=dot)x", "between architecture and tag"),
    ("san10-pair.mine(relation=dot)", r"type san10-pair\(relation=dot\)\.mine"),
    ("san01-pair(relation=dot)", r"did you mean san10-pair\?"),
    ("SAN10-Pair(relation=dot)", r"did you mean san10-pair\?"),
    ("sasa27", r"did you mean sasa26\?"),
    ("san10-salar.untrained", r"did you mean san10-scalar\.untrained\?"),
])
def test_a_wrong_name_is_answered_with_what_is_legal(typed: str, answer: str) -> None:
    with pytest.raises(UnknownNameError, match=answer):
        catalog.find(typed)


@pytest.mark.parametrize("typed", ["san10-pair(relation=a/b)", "san10-pair(relation=a:b)"])
def test_options_do_not_make_a_model_from_elsewhere(typed: str) -> None:
    assert not is_external(typed)
    assert is_external("torchvision/x(y)") and is_external("package.module:callable")


def test_a_network_without_options_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES._values, RESNET.name, replace(RESNET, options=lambda _: ()))
    for typed, seen in (("resnet26(kernal=5)", "none called 'kernal'"), ("resnet26(5)", "is '5'")):
        with pytest.raises(UnknownNameError, match=f"{seen}: it has none$"):
            canonical(typed)


def test_an_architecture_is_named_without_weights() -> None:
    for form in (imagenet_config, small_config):
        with pytest.raises(UnknownNameError, match=r"has the tag 'mine': type 'san10-pair\(relat"):
            form(f"{HADAMARD}.mine")


# --- what a name builds

@pytest.mark.parametrize(("typed", "design"), [
    ("san10-pair(relation=dot,mapping=L,transforms=2,position=none)",
     AttentionConfig("pairwise", "dot", "L", 2, "none")),
    ("san10-patch(relation=clique,mapping=LRLRL,transforms=1)",
     AttentionConfig("patchwise", "clique", "LRLRL", 1, "none")),
    ("san10-scalar(heads=2)", AttentionConfig("scalar", "dot", "L", 3, "none", 2)),
    ("san10-sasa(content=no,heads=2)",
     AttentionConfig("sasa", "dot", "L", 3, "relative", 2, False)),
])
def test_options_reach_the_design(typed: str, design: AttentionConfig) -> None:
    for form in (imagenet_config(typed), small_config(typed)):
        assert isinstance(form, SanConfig) and form.design == design


@pytest.mark.parametrize(("typed", "large", "small"), [
    ("san10-pair", (3, 7, 7, 7, 7), (3, 5, 5, 5, 3)),
    ("san10-pair(footprint=3)", (3, 3, 3, 3, 3), (3, 3, 3, 3, 3)),
    ("san10-pair(footprint=11)", (3, 11, 11, 11, 11), (3, 11, 11, 7, 7)),
    ("san10-sasa(footprints=5-5-7-7-3)", (5, 5, 7, 7, 3), (5, 5, 7, 7, 3)),
])
def test_footprints_of_the_stages(typed: str, large: tuple[int, ...],
                                  small: tuple[int, ...]) -> None:
    for form, expected, side in ((imagenet_config(typed), large, 224),
                                 (small_config(typed), small, 32)):
        assert isinstance(form, SanConfig) and form.footprints == expected
        assert smallest_input(form) <= side


def test_footprints_too_large_for_small_images_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="40x40: its last two stages take at most 7"):
        catalog.find("san10-pair(footprints=3-3-3-9-3).untrained-small")
    assert catalog.find("san10-pair(footprints=3-3-3-9-3).untrained").tag == "untrained"


@pytest.mark.parametrize(("typed", "legal"), [
    ("san10-sasa(heads=8)", "1, 2, 4$"), ("san10-scalar(heads=4)", "1, 2$"),
    ("sasa26(heads=8)", "1, 2, 4$"), ("sasa26(heads=32,position=none)", "1, 2, 4, 8$"),
])
def test_heads_without_channels_in_small_images_are_refused(typed: str, legal: str) -> None:
    with pytest.raises(UnknownNameError, match=legal):
        small_config(typed)
    imagenet_config(typed)


def test_options_reach_the_other_networks() -> None:
    assert small_config("resnet26(kernel=7)") == ResNetConfig((1, 2, 4, 1), 8, "small", 7, 10)
    large = imagenet_config("sasa38(stem=attention,footprint=5,position=absolute,heads=4,"
                            "convolutions=2)")
    assert isinstance(large, SasaConfig)
    assert (large.stem, large.footprint, large.convolutions, large.width) == ("attention", 5, 2, 64)
    assert (large.design.position, large.design.heads) == ("absolute", 4)
    stems = [getattr(small_config(f"sasa26(stem={each})"), "stem")
             for each in ("conv", "attention")]
    assert stems == ["small", "attention"]


@pytest.mark.parametrize("typed", [*networks(), *choices()])
def test_everything_that_can_be_named_can_be_built_for_imagenet(typed: str) -> None:
    assert parameter_shapes(imagenet_config(typed))["fc.weight"][0] == 1000


def test_only_large_footprints_and_many_heads_are_refused_for_small_images() -> None:
    refused = set()
    for typed in choices():
        try:
            small_config(typed)
        except UnknownNameError:
            refused.add(typed)
    assert refused == LARGE_ALONE


@pytest.mark.parametrize("typed", [*SHALLOW, *(name for name in choices()
                                               if name not in LARGE_ALONE)])
def test_everything_that_can_be_named_computes_on_small_images(typed: str) -> None:
    model = create_model(typed, tag="untrained-small")
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels.requires_grad_()
    logits = model(pixels)
    logits.sum().backward()
    assert model.name == f"{canonical(typed)}.untrained-small"
    assert pixels.grad is not None
    assert logits.isfinite().all() and pixels.grad.isfinite().all() and pixels.grad.any()


@pytest.mark.parametrize(("typed", "millions"), [
    # Seed paper, Tables 4 to 8 and text, at the digits that the layer definitions give.
    ("san10-pair(relation=concatenation)", 10.568), ("san10-pair(relation=dot)", 10.496),
    ("san10-patch(relation=star)", 10.930), ("san10-patch(relation=clique)", 11.514),
    ("san10-pair(transforms=1)", 9.516), ("san10-patch(mapping=L)", 53.499),
    ("san10-patch(footprint=11)", 13.819), ("san10-pair(position=none)", 10.531),
    ("resnet26(kernel=7)", 36.143), ("sasa50", 18.04),
])
def test_names_build_the_networks_of_the_papers_tables(typed: str, millions: float) -> None:
    # Half a unit of the third decimal; SASA's total is known to the second alone.
    tolerance = 0.006 if typed == "sasa50" else 0.0006
    assert parameter_count(imagenet_config(typed)) / 1e6 == pytest.approx(millions, abs=tolerance)


def test_a_checkpoint_of_the_released_networks_still_means_the_released_design() -> None:
    for arch in ("san10-pair", "san10-patch"):
        form = small_config(arch)
        assert isinstance(form, SanConfig)
        assert form.design.attention == {"san10-pair": "pairwise", "san10-patch": "patchwise"}[arch]
        assert type(build(form)).__name__ == "San"
    assert SanConfig(layers=(1,)).design == PAIRWISE


# --- the catalogue and the commands that only read it

def test_any_variant_has_untrained_weights_of_both_forms() -> None:
    large, small = (catalog.find(f"san10-pair(footprint=5,relation=dot).{tag}")
                    for tag in ("untrained", "untrained-small"))
    assert large.name == "san10-pair(relation=dot,footprint=5).untrained"
    assert (large.data, small.data, small.preprocessing) == (
        "imagenet", "digits", catalog.SMALL_PREPROCESSING)
    assert not any("(" in name for name in catalog.names())


def test_other_weights_of_a_variant_are_answered_with_how_to_get_them() -> None:
    with pytest.raises(UnknownNameError, match=r"none tagged 'in1k': the tags are untrained, "
                       r"untrained-small, and sanrobust train --model 'san10-pair\(relation="
                       r"hadamard\)' and sanrobust zoo add 'san10-pair\(relation=hadamard\)\.TAG' "
                       r"FILE make another"):
        catalog.find(HADAMARD)
    with pytest.raises(UnknownNameError, match=r"did you mean san10-sasa\.untrained\?"):
        catalog.find("san10-sasa.untraind")


def test_a_form_needs_no_weights() -> None:
    assert catalog.find_form(HADAMARD).name == f"{HADAMARD}.untrained"
    assert catalog.find_form(HADAMARD, tag="digits").name == f"{HADAMARD}.untrained-small"
    assert catalog.find_form("san10-pair").name == "san10-pair.in1k"
    with pytest.raises(UnknownNameError, match="none tagged 'mine'"):
        catalog.find_form(f"{HADAMARD}.mine")


def test_listing_and_showing_variants_loads_no_torch() -> None:
    code = ("import sys; from click.testing import CliRunner; from sanrobust.cli import main; "
            "shown = CliRunner().invoke(main, ['zoo', 'show', 'san10-sasa(heads=2)']); "
            "assert 'position relative, 2 heads' in shown.output, shown.output; "
            "assert CliRunner().invoke(main, ['zoo', 'list']).exit_code == 0; "
            "sys.exit('torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
