"""What a caller chooses: text becomes paths, and what cannot be meant is refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sanrobust.choices import DataConfig, RunConfig, ModelConfig
from sanrobust.errors import UsageError


def test_paths_may_be_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunConfig(out="~/o").out == tmp_path / "o"  # type: ignore[arg-type]
    assert ModelConfig(models=("m",), checkpoint="x.pth").checkpoint == Path("x.pth")
    chosen = DataConfig(data=Path("val"), labels="l.csv", root="r")  # type: ignore[arg-type]
    assert (chosen.data, chosen.labels, chosen.root) == ("val", Path("l.csv"), Path("r"))


def test_the_defaults_are_legal() -> None:
    assert RunConfig().out == Path("results") and DataConfig().data is None
    assert ModelConfig().models == ()


@pytest.mark.parametrize(("make", "words"), [
    (lambda: RunConfig(out=3), "--out must be a path, but it is 3"),
    (lambda: RunConfig(out=None), "--out must be a path"),
    (lambda: RunConfig(out=""), "--out must be a path"),
    (lambda: RunConfig(batch_size=0), "--batch-size must be a whole number of 1 or more or auto"),
    (lambda: RunConfig(batch_size=2.5), "--batch-size must be"),
    (lambda: RunConfig(batch_size=True), "--batch-size must be"),
    (lambda: RunConfig(batch_size="fit"), "--batch-size must be"),
    (lambda: RunConfig(workers=-1), "--workers must be a whole number from 0 to 512"),
    (lambda: RunConfig(threads=0), "--threads must be a whole number of 1 or more"),
    (lambda: RunConfig(device=0), "--device must be text"),
    (lambda: RunConfig(max_failed=1.5), "--max-failed must be a part from 0 to 1"),
    (lambda: RunConfig(max_failed=float("nan")), "--max-failed must be a part from 0 to 1"),
    (lambda: DataConfig(data=3), "--data must be text"),
    (lambda: DataConfig(name=3), "--data-name must be text"),
    (lambda: DataConfig(labels=3), "--labels must be a path"),
    (lambda: DataConfig(num_samples=0), "--num-samples must be a whole number of 1 or more"),
    (lambda: DataConfig(num_samples="5"), "--num-samples must be a whole number"),
    (lambda: ModelConfig(models=("m",), checkpoint=3), "--checkpoint must be a path"),
    (lambda: ModelConfig(models=("m", "n"), checkpoint="x"), "exactly one --model"),
    (lambda: ModelConfig(checkpoint="x"), "exactly one --model"),
])
def test_a_value_of_another_kind_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert words in str(caught.value)
