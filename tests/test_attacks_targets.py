"""Target rules: which wrong class each image is pushed toward."""

from __future__ import annotations

import hashlib
import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from scipy.stats import chisquare

from sanrobust.attacks.targets import parse_rule, random_target
from sanrobust.errors import DataError, UnknownNameError, UsageError

IDS = [f"image-{number:04d}" for number in range(64)]


def labels_and_logits(classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (len(IDS),), generator=generator)
    return labels, torch.randn(len(IDS), classes, generator=generator)


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return f"file:{path}"


def test_random_targets_are_uniform_over_the_wrong_classes() -> None:
    counts = Counter(random_target(f"img{number}", 3, 10, seed=0) for number in range(9000))
    assert 3 not in counts
    # 1 in 1000 uniform draws fails this; the seed is fixed, so it passes always or never.
    assert chisquare([counts[target] for target in range(10) if target != 3]).pvalue > 0.001


def test_random_targets_of_one_image_are_uniform_over_seeds() -> None:
    counts = Counter(random_target("a", 0, 4, seed=seed) for seed in range(3000))
    assert chisquare([counts[target] for target in (1, 2, 3)]).pvalue > 0.001


# The recipe written a second time: changing it would break the resuming of old runs.
PINNED = [1 + int.from_bytes(hashlib.sha256(
    b"sanrobust\0target\0" + b"0\0" + b"0\0" + image_id).digest(), "big") % 999
    for image_id in (b"a", b"b")]


def test_random_targets_are_pinned_so_that_old_runs_can_be_resumed() -> None:
    assert [random_target(image_id, 0, 1000, seed=0) for image_id in ("a", "b")] == PINNED
    assert random_target("a", 0, 1000, seed=1) != PINNED[0]


@pytest.mark.parametrize("size", [1, 7, 32])
def test_random_targets_do_not_depend_on_the_batch(size: int) -> None:
    labels, logits = labels_and_logits()
    rule = parse_rule("random")
    whole = rule.choose(IDS, labels, logits, seed=5)
    parts = [rule.choose(IDS[i:i + size], labels[i:i + size], logits[i:i + size], seed=5)
             for i in range(0, len(IDS), size)]
    assert torch.equal(torch.cat(parts), whole)


def test_random_targets_do_not_depend_on_the_order() -> None:
    labels, logits = labels_and_logits()
    rule = parse_rule("random")
    back = rule.choose(IDS[::-1], labels.flip(0), logits.flip(0), seed=5)
    assert torch.equal(back.flip(0), rule.choose(IDS, labels, logits, seed=5))


@pytest.mark.parametrize("text", ["random", "least-likely", "second"])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_target_is_never_the_label(text: str, classes: int) -> None:
    labels, logits = labels_and_logits(classes)
    targets = parse_rule(text).choose(IDS, labels, logits, seed=0)
    assert not (targets == labels).any()
    assert targets.dtype == torch.int64 and 0 <= targets.min() and targets.max() < classes


def test_least_likely_is_the_lowest_logit_among_the_wrong_classes() -> None:
    logits = torch.tensor([[3.0, -1.0, 2.0], [3.0, -1.0, 2.0]])
    targets = parse_rule("least-likely").choose(["a", "b"], torch.tensor([0, 1]), logits, seed=0)
    assert targets.tolist() == [1, 2]


def test_second_is_the_highest_logit_among_the_wrong_classes() -> None:
    logits = torch.tensor([[3.0, -1.0, 2.0], [3.0, -1.0, 2.0]])
    targets = parse_rule("second").choose(["a", "b"], torch.tensor([0, 1]), logits, seed=0)
    assert targets.tolist() == [2, 0]


def test_choosing_leaves_the_clean_logits_as_they_were() -> None:
    labels, logits = labels_and_logits()
    before = logits.clone()
    parse_rule("second").choose(IDS, labels, logits, seed=0)
    assert torch.equal(logits, before)


def test_a_fixed_target_excludes_the_images_of_its_class_with_a_reason() -> None:
    split = parse_rule("fixed:2").split([0, 2, 1, 2])
    assert split.kept == (0, 2)
    assert split.excluded == ((1, "excluded: the image's label is the fixed target 2"),
                              (3, "excluded: the image's label is the fixed target 2"))


@pytest.mark.parametrize("text", ["random", "least-likely", "second"])
def test_other_rules_exclude_nobody(text: str) -> None:
    assert parse_rule(text).split([0, 1, 2]).kept == (0, 1, 2)


def test_a_fixed_target_is_the_same_for_all() -> None:
    labels = torch.tensor([0, 1])
    targets = parse_rule("fixed:2").choose(["a", "b"], labels, torch.zeros(2, 3), seed=0)
    assert targets.tolist() == [2, 2]


def test_a_fixed_target_outside_the_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="the fixed target must be a class from 0 to 2, but it is"):
        parse_rule("fixed:3").check(["a"], [0], 3)


@pytest.mark.parametrize(("text", "message"), [
    ("fixed", "a fixed target must be a class index"),
    ("fixed:", "a fixed target must be a class index"),
    ("fixed:-1", "a fixed target must be a class index"),
    ("fixed:cat", "a fixed target must be a class index"),
    ("file:", "a target file must have a path"),
    ("random:3", "the rule random must stand alone"),
    ("least_likely", "did you mean least-likely?"),
    ("", "the target rule must be a known name"),
])
def test_a_rule_that_cannot_be_meant_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_rule(text)
    assert message in str(caught.value)


def test_a_mistyped_rule_is_an_unknown_name() -> None:
    with pytest.raises(UnknownNameError):
        parse_rule("secnd")


def test_a_file_rule_is_parsed_without_opening_the_file() -> None:
    assert parse_rule("file:does/not/exist.csv").path == Path("does/not/exist.csv")


def test_a_file_gives_each_image_its_target_whatever_the_order_of_rows(tmp_path: Path) -> None:
    rule = parse_rule(written(
        tmp_path / "t.csv", "\ufefftarget,note,image\n2,x,a\n0,y,b\n1,z,c\n")).loaded()
    targets = rule.choose(["b", "a"], torch.tensor([1, 1]), torch.zeros(2, 3), seed=0)
    assert targets.tolist() == [0, 2]


def test_a_loaded_rule_survives_pickling(tmp_path: Path) -> None:
    rule = parse_rule(written(tmp_path / "t.csv", "image,target\na,2\n")).loaded()
    assert pickle.loads(pickle.dumps(rule)).table == {"a": 2}


@pytest.mark.parametrize(("text", "message"), [
    ("", "lacks image, target"),
    ("image,class\na,1\n", "lacks target"),
    ("image,target\na,one\n", "line 2 of t.csv has 'one' for a"),
    ("image,target\na,-1\n", "line 2 of t.csv has '-1' for a"),
    ("image,target\na,\n", "line 2 of t.csv has '' for a"),
    ("image,target\na\n", "line 2 of t.csv has '' for a"),
    ("image,target\n,1\n", "line 2 of t.csv gives '' the target '1'"),
    ("image,target\na,1\na,2\n", "lines 2 and 3 of t.csv both name a"),
    ('image,target\n"a"b,1\n', "cannot be read after line 2"),
])
def test_a_damaged_target_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        parse_rule(written(tmp_path / "t.csv", text)).loaded()
    assert message in str(caught.value)


def test_a_missing_target_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be opened \(No such file or directory\)"):
        parse_rule(f"file:{tmp_path / 'none.csv'}").loaded()


def test_a_target_file_of_another_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"image,target\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="is not UTF-8 text"):
        parse_rule(f"file:{tmp_path / 't.csv'}").loaded()


@pytest.mark.parametrize(("image_id", "label", "message"), [
    ("z", 0, "has no row for image 'z'"),
    ("a", 2, "gives 2, the label of image 'a'"),
    ("far", 0, "gives 10 for image 'far'"),
])
def test_a_row_that_cannot_serve_an_image_is_refused(tmp_path: Path, image_id: str, label: int,
                                                     message: str) -> None:
    rule = parse_rule(written(tmp_path / "t.csv", "image,target\na,2\nfar,10\n")).loaded()
    with pytest.raises(DataError) as caught:
        rule.choose([image_id], torch.tensor([label]), torch.zeros(1, 10), seed=0)
    assert message in str(caught.value)


def test_the_identity_of_a_rule_is_its_text() -> None:
    for text in ("random", "least-likely", "second", "fixed:7"):
        assert parse_rule(text).identity() == text
