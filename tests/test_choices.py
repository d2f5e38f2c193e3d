"""What a caller chooses: text becomes paths, and what cannot be meant is refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sanrobust.choices import DataChoice, HowToRun, ModelChoice
from sanrobust.errors import UsageError


def test_paths_may_be_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert HowToRun(out="~/o").out == tmp_path / "o"  # type: ignore[arg-type]
    assert ModelChoice(models=("m",), checkpoint="x.pth").checkpoint == Path("x.pth")
    chosen = DataChoice(data=Path("val"), labels="l.csv", root="r")  # type: ignore[arg-type]
    assert (chosen.data, chosen.labels, chosen.root) == ("val", Path("l.csv"), Path("r"))


def test_the_defaults_are_legal() -> None:
    assert HowToRun().out == Path("results") and DataChoice().data is None
    assert ModelChoice().models == ()


@pytest.mark.parametrize(("make", "words"), [
    (lambda: HowToRun(out=3), "--out must be a path, but it is 3"),
    (lambda: HowToRun(out=None), "--out must be a path"),
    (lambda: HowToRun(out=""), "--out must be a path"),
    (lambda: HowToRun(batch_size=0), "--batch-size must be a whole number of 1 or more or auto"),
    (lambda: HowToRun(batch_size=2.5), "--batch-size must be"),
    (lambda: HowToRun(batch_size=True), "--batch-size must be"),
    (lambda: HowToRun(batch_size="fit"), "--batch-size must be"),
    (lambda: HowToRun(workers=-1), "--workers must be a whole number from 0 to 512"),
    (lambda: HowToRun(threads=0), "--threads must be a whole number of 1 or more"),
    (lambda: HowToRun(device=0), "--device must be text"),
    (lambda: HowToRun(max_failed=1.5), "--max-failed must be a part from 0 to 1"),
    (lambda: HowToRun(max_failed=float("nan")), "--max-failed must be a part from 0 to 1"),
    (lambda: DataChoice(data=3), "--data must be text"),
    (lambda: DataChoice(name=3), "--data-name must be text"),
    (lambda: DataChoice(labels=3), "--labels must be a path"),
    (lambda: DataChoice(num_samples=0), "--num-samples must be a whole number of 1 or more"),
    (lambda: DataChoice(num_samples="5"), "--num-samples must be a whole number"),
    (lambda: ModelChoice(models=("m",), checkpoint=3), "--checkpoint must be a path"),
    (lambda: ModelChoice(models=("m", "n"), checkpoint="x"), "exactly one --model"),
    (lambda: ModelChoice(checkpoint="x"), "exactly one --model"),
])
def test_a_value_of_another_kind_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert words in str(caught.value)
