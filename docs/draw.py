"""Draws the pictures of the documentation: ``python docs/draw.py`` writes docs/drawings/*.svg."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

FOLDER = Path(__file__).with_name("drawings")
INK, LINE, CENTRE, NEAR, PLAIN, STEP, WEIGHT = (
    "#1f2933", "#52606d", "#f0b429", "#bae3ff", "#ffffff", "#e3f8e8", "#fde8e8")
LINE_HEIGHT = 16


class Drawing:
    """An SVG on a white ground, so that it reads on dark pages too.

    Args:
        width, height: in pixels.
        title: what it shows, for those who cannot see it.
    """

    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-family="sans-serif" '
            f'font-size="13" fill="{INK}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
            f'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z" fill="{LINE}"/></marker>'
            "</defs>",
            f'<rect width="{width}" height="{height}" rx="8" fill="white"/>']

    def text(self, x: float, y: float, words: str, *, anchor: str = "start",
             bold: bool = False) -> None:
        """Write one line; ``y`` is its base line."""
        weight = ' font-weight="bold"' if bold else ""
        self._parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}"{weight}>'
                           f"{escape(words)}</text>")

    def rect(self, x: float, y: float, width: float, height: float, fill: str, *,
             rounded: int = 0) -> None:
        """Draw a box."""
        self._parts.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" '
                           f'rx="{rounded}" fill="{fill}" stroke="{LINE}"/>')

    def box(self, x: float, y: float, width: float, lines: Sequence[str], fill: str, *,
            height: float | None = None) -> float:
        """Draw a box with lines of text, the first one bold; return its height."""
        tall = height or len(lines) * LINE_HEIGHT + 14
        self.rect(x, y, width, tall, fill, rounded=6)
        top = y + (tall - len(lines) * LINE_HEIGHT) / 2 + 12
        for place, line in enumerate(lines):
            self.text(x + width / 2, top + place * LINE_HEIGHT, line, anchor="middle",
                      bold=place == 0)
        return tall

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draw an arrow along points."""
        path = " ".join(f"{x},{y}" for x, y in points)
        self._parts.append(f'<polyline points="{path}" fill="none" stroke="{LINE}" '
                           'stroke-width="1.4" marker-end="url(#tip)"/>')

    def __str__(self) -> str:
        return "\n".join([*self._parts, "</svg>", ""])


def footprint(drawing: Drawing, x: float, y: float) -> None:
    """Draw a position i with its neighbours."""
    side = 26
    for place in range(25):
        row, column = divmod(place, 5)
        inside = 1 <= row <= 3 and 1 <= column <= 3
        fill = CENTRE if place == 12 else NEAR if inside else PLAIN
        drawing.rect(x + column * side, y + row * side, side, side, fill)
    drawing.text(x + 2.5 * side, y + 2.5 * side + 5, "i", anchor="middle", bold=True)
    drawing.text(x + 3.5 * side, y + 1.5 * side + 5, "j", anchor="middle")
    drawing.text(x + 2.5 * side, y + 5 * side + 18, "x, footprint of i", anchor="middle")


def operator(title: str, *, relation: Sequence[str], mapping: Sequence[str],
             weights: Sequence[str], position: Sequence[str] = ()) -> Drawing:
    """Draw how one attention operator makes the output at a position.

    Args:
        title: the operator.
        relation, mapping, weights: what stands in the boxes on the way to the weights.
        position: what position adds; empty for nothing.
    """
    drawing = Drawing(960, 270, title)
    drawing.text(18, 28, title, bold=True)
    footprint(drawing, 18, 60)
    for y, words in ((52, "φ(x) query, at i"), (98, "ψ(x) key, at every j"),
                     (200, "β(x) value, at every j")):
        drawing.box(180, y, 172, [words], STEP, height=34)
        drawing.arrow((152, 125), (165, 125), (165, y + 17), (178, y + 17))
    drawing.box(375, 52, 165, relation, NEAR, height=80)
    drawing.arrow((352, 69), (373, 69))
    drawing.arrow((352, 115), (373, 115))
    if position:
        drawing.box(375, 146, 165, position, PLAIN, height=46)
    drawing.box(575, 52, 160, mapping, STEP, height=80)
    drawing.arrow((540, 92), (573, 92))
    if position:
        drawing.arrow((540, 169), (655, 169), (655, 134))
    drawing.box(770, 52, 172, weights, WEIGHT, height=80)
    drawing.arrow((735, 92), (768, 92))
    drawing.box(770, 190, 172, ["output y at i", "sum over j of", "weight × value"], CENTRE,
                height=62)
    drawing.arrow((856, 132), (856, 188))
    drawing.arrow((352, 217), (768, 217))
    return drawing


def pairwise() -> Drawing:
    """Draw equation 2 of the paper."""
    return operator(
        "Pairwise attention",
        relation=["relation δ", "for each pair (i, j)", "φ(x_i) − ψ(x_j)", "R channels"],
        position=["position", "p_i − p_j, encoded"],
        mapping=["mapping γ (LRL)", "of each pair alone", "linear, ReLU, linear"],
        weights=["softmax over all j", "M weights", "for each neighbour j"])


def patchwise() -> Drawing:
    """Draw equation 4 of the paper."""
    return operator(
        "Patchwise attention",
        relation=["relation δ", "of the whole patch", "[φ(x_i), ψ(x_j) of all j]",
                  "one long vector"],
        mapping=["mapping γ (LRL)", "of the patch", "linear, ReLU, linear"],
        weights=["no softmax", "M weights for each j,", "K × K × M at once"])


def scalar() -> Drawing:
    """Draw equation 6 of the paper."""
    return operator(
        "Scalar attention",
        relation=["relation δ", "for each pair (i, j)", "φ(x_i) · ψ(x_j)", "one number per head"],
        mapping=["no mapping", "the number is the logit"],
        weights=["softmax over all j", "one weight per head", "for each neighbour j"])


def sasa() -> Drawing:
    """Draw the attention of Ramachandran et al."""
    return operator(
        "SASA",
        relation=["content", "for each pair (i, j)", "q_i · k_j", "one number per head"],
        position=["relative position", "q_i · r(j − i), learnt"],
        mapping=["sum", "of content and position", "is the logit"],
        weights=["softmax over all j", "one weight per head", "for each neighbour j"])


LAYERS = (
    ("1  modules.py, local.py, mappings.py, relations.py",
     "layers for networks: nn.Module, parameters, relation δ, mapping γ"),
    ("2  functional.py", "the operators as functions; every argument check"),
    ("3  backends.py", "asks cupy, native, reference in turn: who can compute this call?"),
    ("4  fused.py, folding.py / reference.py",
     "frozen mapping folded to matrices, one fused call / composed of elementary operators"),
    ("5  ops.py, operators.py, gradients.py, flops.py",
     "torch.ops.sanrobust.*: autograd, torch.compile, FLOP counter"),
    ("6  kernelset.py", "what a device must offer: forward and backward, without autograd"),
)
SETS = (
    ("native/", ("kernels.py: tensors to structs", "src/api.h: plain C interface", "by ctypes"),
     ("template <int Relation>", "PairwiseForward, ...", "generic, AVX2, AVX-512")),
    ("cuda/", ("kernels.py: which kernel fits", "compiler.py: CuPy compiles", "on first use"),
     ("template <typename T, ...>", "general, tuned, narrow", "src/*.cu, *.cuh")),
    ("plain.py", ("the same in torch,", "any device and dtype"),
     ("operators of torch", "the reference")),
)


def layers() -> Drawing:
    """Draw the floors of the kernels, from the modules to the templates."""
    drawing = Drawing(900, 640, "From the layers of a network to the kernel templates")
    for place, (name, words) in enumerate(LAYERS):
        y = 16 + place * 62
        drawing.box(30, y, 840, [name, words], NEAR if place % 2 else STEP, height=46)
        if place:
            drawing.arrow((450, y - 16), (450, y - 2))
    for place, (name, made, template) in enumerate(SETS):
        x = 30 + place * 285
        drawing.arrow((x + 135, 372), (x + 135, 394))
        drawing.box(x, 396, 270, [f"7  {name}", *made], PLAIN, height=88)
        drawing.arrow((x + 135, 484), (x + 135, 510))
        drawing.box(x, 512, 270, template, WEIGHT, height=70)
        drawing.text(x + 135, 604, ("CPU", "CUDA device", "everywhere")[place], anchor="middle",
                     bold=True)
    drawing.text(450, 628, "C++ and CUDA templates; the reference defines what is right",
                 anchor="middle")
    return drawing


def drawings() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of every file."""
    for draw in (pairwise, patchwise, scalar, sasa, layers):
        yield f"{draw.__name__}.svg", str(draw())


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in drawings():
        (FOLDER / name).write_text(text, "utf-8")
