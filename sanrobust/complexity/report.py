"""What a count prints and writes: sheets of models, of the paper's tables and of Table 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from sanrobust import paper
from sanrobust.complexity.models import Counted
from sanrobust.complexity.settings import CONVENTIONS, IMG_SIZE, Convention
from sanrobust.tables.sheet import Sheet, to_latex, to_markdown
from sanrobust.complexity.tables import BILLION, EQUAL, MILLION, Layer, disagreements
from sanrobust.files import write_text
from sanrobust.harmless import csv_text

_RENDERERS: dict[str, Callable[[Sheet], str]] = {"md": to_markdown, "tex": to_latex}
_UNITS: dict[Convention, str] = {"paper": "FLOPs (G)", "mac": "MACs (G)"}
_WHERE = {"text": "Text", "sasa": "SASA"}
_NETWORKS = {"san10": "SAN10", "san15": "SAN15", "san19": "SAN19"}
_MARK = "*"


def models_rows(models: Sequence[Counted], convention: Convention, *,
                stages: bool) -> pd.DataFrame:
    """Return one row per model, or per stage of it and for its total: exact numbers."""
    rows = []
    for each in models:
        size = each.img_size
        facts = {"model": each.model,
                 "img_size": size if isinstance(size, int) else "x".join(map(str, size)),
                 "convention": convention}
        if stages:
            rows += [{**facts, "stage": stage.name, "output": _shape(stage.output),
                      "params": stage.parameters, "flops": stage.flops}
                     for stage in each.cost.stages]
        whole = {"stage": "total", "output": ""} if stages else {}
        rows.append({**facts, **whole, "params": each.cost.parameters, "flops": each.cost.flops,
                     "uncounted": " ".join(each.cost.uncounted)})
    return pd.DataFrame(rows)


def models_sheet(rows: pd.DataFrame, convention: Convention) -> Sheet:
    """Arrange `models_rows` for a reader."""
    stages = "stage" in rows
    middle = ("stage", "output") if stages else ()
    lines: dict[str, list[tuple[str, ...]]] = {}
    for _, row in rows.iterrows():
        line = (str(row["model"]), str(row["img_size"]), *(str(row[name]) for name in middle),
                _scaled(row["params"], MILLION), _scaled(row["flops"], BILLION))
        lines.setdefault(str(row["model"]) if stages else "", []).append(line)
    caption = (f"For one image, with the input's side in pixels. {_convention(convention)}"
               f"{_uncounted(rows)}")
    return Sheet("complexity", caption, ("Model", "Input", *(name.capitalize() for name in middle),
                                         "Params (M)", _UNITS[convention]),
                 2 + len(middle), tuple(map(tuple, lines.values())))


def _uncounted(rows: pd.DataFrame) -> str:
    """Name the operators that ran without being counted, with their models where these differ."""
    models: dict[str, list[str]] = {}
    for _, row in rows.dropna(subset=["uncounted"]).iterrows():
        models.setdefault(str(row["uncounted"]), []).append(str(row["model"]))
    lists = {names.replace(" ", ", ") or "none": named for names, named in models.items()}
    said = "; ".join(names if len(lists) == 1 else f"{names} ({', '.join(named)})"
                     for names, named in lists.items())
    return f" Operators that ran and count nothing: {said}."


def compared_sheet(rows: pd.DataFrame) -> Sheet:
    """Arrange the rows of `tables.compared`: a group for each table, ours and printed."""
    groups = [tuple(_compared_line(row, first=place == 0) for place, (_, row)
                    in enumerate(part.iterrows()))
              for _, part in rows.groupby("table", sort=False)]
    headings = ("Table", "Network", "Model", "Params (M)", "printed", "FLOPs (G)", "printed",
                "MACs (G)")
    return Sheet("complexity", _compared_caption(rows), headings, 3, tuple(groups))


def architecture_rows(layers: Sequence[Layer]) -> pd.DataFrame:
    """Return Table 1 with ours behind the printed text, and whether they are the same."""
    rows = paper.architecture()
    ours = pd.DataFrame([dict(zip(rows.columns, (each.layers, each.output, *each.texts)))
                         for each in layers])
    same = (rows == ours).all(axis="columns") if rows.shape == ours.shape else False
    return rows.join(ours.drop(columns="layers").add_prefix("our_")).assign(equal=same)


def architecture_sheet(rows: pd.DataFrame) -> Sheet:
    """Arrange `architecture_rows`: the paper's text and ours, once where all networks share it."""
    equal = int(rows["equal"].sum())
    caption = (f"The paper's Table 1 and our networks, read off their modules and their outputs "
               f"at {IMG_SIZE}x{IMG_SIZE} pixels: {equal} of {len(rows)} layers are equal.")
    return Sheet("architecture", caption, ("Layers", "Output", "Printed", "Ours"), 4,
                 tuple(tuple(_layer_lines(row)) for _, row in rows.iterrows()))


def _layer_lines(row: pd.Series) -> list[tuple[str, ...]]:
    texts = {name: (str(row[name]), str(row[f"our_{name}"])) for name in _NETWORKS}
    layers, output, our_output = str(row["layers"]), str(row["output"]), str(row["our_output"])
    size = output if output == our_output else f"{output} (ours {our_output})"
    if len(set(texts.values())) == 1:
        return [(layers, size, *texts["san10"])]
    return [(f"{layers}, {_NETWORKS[name]}", size, *pair) for name, pair in texts.items()]


def write(rows: pd.DataFrame, sheet: Sheet, folder: Path, name: str) -> list[Path]:
    """Write ``NAME.csv`` (exact numbers), ``NAME.md`` and ``NAME.tex`` and return their paths.

    Raises OutputError when a file cannot be written.
    """
    texts = {"csv": csv_text(rows),
             **{suffix: render(sheet) for suffix, render in _RENDERERS.items()}}
    paths = [folder / f"{name}.{suffix}" for suffix in texts]
    for path, text in zip(paths, texts.values()):
        write_text(path, text)
    return paths


def _compared_line(row: pd.Series, *, first: bool) -> tuple[str, ...]:
    table = str(row["table"])
    where = _WHERE.get(table, f"Table {table}") if first else ""
    figures = [_scaled(row["params"], MILLION), _printed(row, "params"),
               _scaled(row["flops"], BILLION), _printed(row, "flops"),
               _scaled(row["macs"], BILLION)]
    return (where, str(row["row"]), str(row["model"]), *figures)


def _printed(row: pd.Series, name: str) -> str:
    value, agrees = row[f"printed_{name}"], row[f"{name}_agree"]
    return "" if pd.isna(value) else f"{value:.1f}{'' if agrees == EQUAL else _MARK}"


def _compared_caption(rows: pd.DataFrame) -> str:
    counts = [f"{(rows[f'{name}_agree'] == EQUAL).sum()} of "
              f"{rows[f'printed_{name}'].notna().sum()} printed figures of {words}"
              for name, words in (("params", "parameters"), ("flops", "FLOPs"))]
    odd = "; ".join(disagreements(rows))
    sources = f"Printed: {paper.SOURCE}"
    if "text" in set(rows["table"]):
        sources += " (Text: Section 5.3)"
    if "sasa" in set(rows["table"]):
        sources += ("; SASA: Ramachandran et al., Stand-Alone Self-Attention in Vision Models, "
                    "NeurIPS 2019")
    sentences = [
        f"One image of {IMG_SIZE}x{IMG_SIZE} pixels, ours beside the printed figures.",
        f"Rounded to a decimal, ours equal {' and '.join(counts)}.",
        f"Not equal ({_MARK}): {odd}." if odd else "",
        _convention("paper"), f"MACs are {CONVENTIONS['mac']}.", f"{sources}."]
    return " ".join(sentence for sentence in sentences if sentence)


def _convention(convention: Convention) -> str:
    name = _UNITS[convention].partition(" ")[0]
    return f"{name} (convention {convention}) are {CONVENTIONS[convention]}."


def _scaled(value: int, unit: int) -> str:
    return f"{value / unit:.3f}"


def _shape(shape: tuple[int, ...] | None) -> str:
    """Return a shape without the batch, maps as height x width x channels."""
    if shape is None:
        return ""
    return "×".join(map(str, (*shape[1:], shape[0]) if len(shape) == 3 else shape))
