"""``sanrobust show``: what an attention model does, in pictures and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sanrobust.cli.group import ErrorGroup
from sanrobust.options import Position, Whole
from sanrobust.cli.options import PATH
from sanrobust.errors import ProtocolError
from sanrobust.preprocessing import LARGEST_SIDE


@click.group(cls=ErrorGroup)
def show() -> None:
    """Draw what a model attends to; print what its operators can and cannot do."""


@show.command()
@click.option("-m", "--model", default="san10-pair.digits", show_default=True, metavar="NAME",
              help="As in the other commands; a SAN or a SASA-ResNet.")
@click.option("--checkpoint", type=PATH, metavar="FILE", help="Weights of the model.")
@click.option("--use-ema", is_flag=True,
              help="Take the averaged weights of a --checkpoint that has both.")
@click.option("--image", metavar="FILE",
              help="An image, or an embedded digit such as digits/0007. "
                   "[default: the first of the test set]")
@click.option("--img-size", type=Whole(1, LARGEST_SIDE, example=224),
              metavar="PIXELS", help="Side of the centre crop. [default: the model's]")
@click.option("--stage", "stages", multiple=True, type=Whole(0), metavar="N",
              help="Repeatable. [default: all]")
@click.option("--block", "blocks", multiple=True, type=Whole(0), metavar="N",
              help="Of each stage; repeatable. [default: the last]")
@click.option("--position", "positions", multiple=True, type=Position(), metavar="Y,X",
              help="Pixel of the cropped image whose attention is drawn; repeatable. "
                   "[default: the centre and two more]")
@click.option("--group", "--head", "groups", multiple=True, type=Whole(0),
              metavar="N", help="Weight group, or head; repeatable.")
@click.option("--channel", "channels", multiple=True, type=Whole(0), metavar="N",
              help="Value channel, drawn by the group that weighs it; repeatable.")
@click.option("--count", type=Whole(1), default=4, show_default=True, metavar="N",
              help="How many groups are drawn where none is named: those with the largest "
                   "weights.")
@click.option("--out", type=PATH, default=Path("results/attention"), show_default=True,
              metavar="FOLDER", help="Folder of the pictures and of the table.")
def attention(**values: Any) -> None:
    """Draw attention weights over an image: a PNG per stage and a CSV of the numbers.

    A row for each position, a column for each weight group: of M groups, group g weighs the
    value channels g, g + M, g + 2M... The outlines are the position and its footprint. A
    neighbour beyond the border is drawn where reflection puts it; where a layer pads with zeros
    it is left out.
    """
    from sanrobust.attention_maps import read_attention
    from sanrobust.attention_pictures import Selection, write_pictures
    from sanrobust.cli.report import say
    from sanrobust.files import require_writable
    require_writable(values["out"])
    selection = Selection(positions=values["positions"], groups=values["groups"],
                          channels=values["channels"], count=values["count"])
    seen = read_attention(values["model"], values["image"], stages=values["stages"],
                          blocks=values["blocks"], checkpoint=values["checkpoint"],
                          use_ema=values["use_ema"],
                          overrides={"img_size": values["img_size"]}, say=say)
    for path in write_pictures(seen, values["out"], selection):
        click.echo(str(path))


@show.command()
@click.option("--seed", type=Whole(0, 2**32 - 1), default=0, show_default=True,
              help="Of the random layers.")
def claims(seed: int) -> None:
    """Print the structural claims of the paper (Table 2, Sections 3 and 4), each measured.

    Layers have random weights and compute in float64, so a zero is a zero up to rounding.
    """
    from sanrobust.claims import measure_claims
    report = measure_claims(seed=seed)
    for line in report.lines():
        click.echo(line)
    if not report.holds:
        raise ProtocolError("every claim must hold", seen="the lines marked NOT show one that "
                            "does not", hint="report it with the seed and sanrobust info")
