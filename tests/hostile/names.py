"""Names of nothing: of models, weights, data, attacks, rules and files, made by hypothesis."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from hypothesis import strategies as st

from hostile.case import Case
from hostile.examples import examples

_ARCH = st.sampled_from(("san10-pair", "san19-patch", "resnet26", "sasa26", "san10-scalar"))
# No legal name of anything has one of these.
_SPOILT = st.sampled_from((
    "\x1b[2J", "\n", "\r", "\t", "\u202e", "\ud83d", "\udce9", "/..", "../", "//", "~", "|", ";",
    "$(id)", "`id`", "*", "?", "\\", "\u200b", "\u0661", "\x7f", "%s", "{0}", "<", "'", '"', "((",
    ")", "=", ",,", "n" * 300, "n" * 5000, "9" * 4400))
_TEXT = st.text(st.characters(exclude_characters="\x00", exclude_categories=()), max_size=30)
_VALUE = st.one_of(st.sampled_from(("", "9" * 4400, "-1", "0", "1e400", "nan", "3-3", "3-3-3-3-x",
                                    "5.0", "\u0665", "5_", "0x5", "n" * 5000)), _TEXT)
_KEY = st.sampled_from(("footprint", "footprints", "relation", "mapping", "transforms",
                        "position", "heads", "kernel", "stem", "f" * 3000, "\x1b", ""))
SPOILT = st.builds("".join, st.tuples(_TEXT, _SPOILT, _TEXT))
MODELS = st.one_of(
    st.builds("{}{}{}".format, _ARCH, _SPOILT, _TEXT),
    st.builds("{}({}={}!).digits".format, _ARCH, _KEY, _VALUE),
    st.builds("{}.digits{}".format, _ARCH, _SPOILT),
    st.builds("timm/{}".format, SPOILT), st.builds("torchvision/{}".format, SPOILT))
_FEW = "--num-samples", "2", "--out", "o"
# The words before a hostile name, and those behind it.
PLACES: tuple[tuple[tuple[str, ...], tuple[str, ...], bool], ...] = (
    (("rotate", "--model="), _FEW, True), (("pgd", "--model="), _FEW, True),
    (("zoo", "show", "--", ""), (), True), (("complexity", "--model="), (), True),
    (("zoo", "verify", "--", ""), (), True), (("zoo", "add", "--", ""), (), True),
    (("show", "attention", "--model="), ("--out", "o"), True),
    (("bench", "--model="), ("--out", "o"), True), (("study", "--model="), ("--out", "o"), True),
    (("train", "--model="), ("--out", "o"), True),
    (("rotate", "--data="), _FEW, False), (("rotate", "--backend="), _FEW, False),
    (("rotate", "--device="), _FEW, False), (("rotate", "--interpolation="), _FEW, False),
    (("pgd", "--targets="), _FEW, False), (("pgd", "--loss="), _FEW, False),
    (("pgd", "--attack="), _FEW, False), (("pgd", "--attack=torchattacks:"), _FEW, False),
    (("pgd", "--attack=torchattacks:PGD", "--attack-option="), _FEW, False),
    (("pgd", "--attack=torchattacks:PGD", "--attack-option=eps="), _FEW, False),
    (("pgd", "--attack=torchattacks:PGD", "--attack-option=steps="), _FEW, False),
    (("bench", "--formulation="), (), False), (("bench", "--contender="), (), False),
    (("complexity", "--table="), (), False), (("complexity", "--convention="), (), False),
    (("table", "--model="), ("--out", "o"), False), (("table", "--run="), ("--out", "o"), False),
    (("train", "--data="), ("--out", "o"), False), (("study", "--data="), ("--out", "o"), False),
    (("show", "attention", "--image="), ("--out", "o"), False), (("",), (), False),
    (("zoo", ""), (), False), (("rotate", "--"), _FEW, False),
)


def names(folder: Path, seed: int) -> Iterator[Case]:
    """Yield hostile names in every place that takes one."""
    models = examples(MODELS, 400, seed)
    texts = examples(SPOILT, 400, seed)
    order = random.Random(seed)
    for _ in range(2000):
        before, behind, is_model = order.choice(PLACES)
        name = order.choice(models if is_model else texts)
        yield Case(f"{' '.join(before)}{name[:30]!r}",
                   (*before[:-1], before[-1] + name, *behind), folder)
