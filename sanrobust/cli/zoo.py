"""``sanrobust zoo``: the models, their facts and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from sanrobust.cli.group import ErrorGroup
from sanrobust.cli.options import PATH
from sanrobust.design import AttentionConfig
from sanrobust.errors import CheckpointError
from sanrobust.progress import download_lines
from sanrobust.zoo import catalog, store
from sanrobust.zoo.entry import (
    Entry, Packaged, Remote, Stored, Unpublished, Untrained, WeightsSource,
)
from sanrobust.zoo.names import options, parse


@click.group(cls=ErrorGroup)
def zoo() -> None:
    """List, show, add and verify models and their weights."""


@zoo.command("list")
@click.option("--tag", metavar="TAG", help="Only the entries with these weights.")
def list_models(tag: str | None) -> None:
    """List every entry: name, reported top-1 in percent, weights."""
    listed = [entry for entry in catalog.entries() if tag in (None, entry.tag)]
    width = _width(listed)
    click.echo(f"{'name':<{width}}{'top-1':>6}  weights")
    for entry in listed:
        top1 = "-" if entry.top1 is None else f"{entry.top1:.1f}"
        click.echo(f"{entry.name:<{width}}{top1:>6}  {_describe(entry.weights)}")
    for error in store.damaged().values():
        click.echo(f"not listed: {error}", err=True)


@zoo.command()
@click.argument("name")
def show(name: str) -> None:
    """Show all facts of one model; an architecture without weights is shown untrained."""
    for fact, value in _facts(catalog.find_form(name)).items():
        if value:
            click.echo(f"{fact:<15}{value}")


@zoo.command()
@click.argument("name")
@click.argument("file", type=PATH, required=False)
@click.option("--like", metavar="NAME",
              help="Entry whose architecture and preprocessing a new tag takes over.")
@click.option("--overwrite", is_flag=True, help="Replace weights added under NAME before.")
@click.option("--use-ema", is_flag=True,
              help="Take the averaged weights of a FILE that has both.")
def add(name: str, file: Path | None, like: str | None, overwrite: bool, use_ema: bool) -> None:
    """Check weights and put them into the local store as NAME (ARCH.TAG).

    Without FILE the entry's published weights are downloaded.
    """
    from sanrobust.zoo.resolve import fetch
    if file is None:
        path = fetch(catalog.find(name), progress=download_lines(name, click.echo), say=click.echo)
        click.echo(f"{name}: {path}")
        return
    record = store.add(name, file, like=catalog.find(like) if like else None,
                       overwrite=overwrite, use_ema=use_ema, say=click.echo)
    click.echo(f"{record.entry.name}: stored, weights {record.state_digest[:12]}, "
               f"source sha256 {record.source_sha256}")


@zoo.command()
@click.argument("names", nargs=-1)
def verify(names: tuple[str, ...]) -> None:
    """Check hashes, load strictly and run one image; without NAMES all local weights."""
    from sanrobust.zoo.resolve import verify as verify_entry
    chosen = [catalog.find(name) for name in names] or [
        entry for entry in catalog.entries() if isinstance(entry.weights, (Packaged, Stored))]
    failed = []
    for entry in chosen:
        found = verify_entry(entry)
        click.echo(f"{found.name:<{_width(chosen)}}{found.status:<8}{found.detail}")
        failed += [found.name] * (found.status == "failed")
    if failed:
        raise CheckpointError("every model's weights must verify",
                              seen=f"{', '.join(failed)} did not",
                              hint="see the lines above for what to do")


def _width(entries: Sequence[Entry]) -> int:
    """Return the width of a column of names, with a gap behind the longest."""
    return max([30, *(len(entry.name) + 2 for entry in entries)])


def _facts(entry: Entry) -> dict[str, str]:
    preprocessing = entry.preprocessing
    reported = " / ".join(f"{value:.1f}" for value in (entry.top1, entry.top5)
                          if value is not None)
    return {
        "name": entry.name,
        "architecture": entry.architecture.describe(),
        "attention": _attention(getattr(entry.architecture, "design", None)),
        "options": "; ".join(f"{option.name} {option.legal}"
                             for option in options(parse(entry.arch).network)),
        "weights": _describe(entry.weights),
        "sha256": getattr(entry.weights, "sha256", None) or "",
        "address": getattr(entry.weights, "url", ""),
        "page": getattr(entry.weights, "page", ""),
        "preprocessing": f"resize {preprocessing.resize_size}, crop {preprocessing.img_size}, "
                         f"{preprocessing.interpolation}, mean {preprocessing.mean}, "
                         f"std {preprocessing.std}",
        "classes": f"{entry.architecture.num_classes} ({entry.data})",
        "top-1 / top-5": reported and f"{reported} as reported",
        "licence": entry.licence,
        "reference": entry.reference,
        "note": entry.note,
    }


def _attention(design: AttentionConfig | None) -> str:
    if design is None:
        return ""
    heads = f"{design.heads} heads, {'q.k' if design.content else 'no q.k'}"
    mapped = f"mapping {design.mapping}, {design.transforms} transforms"
    scalar = design.attention in ("scalar", "sasa")
    return (f"{design.attention}, relation {design.relation}, position {design.position}, "
            f"{heads if scalar else mapped}")


def _describe(weights: WeightsSource) -> str:
    match weights:
        case Packaged():
            return "in the package"
        case Stored():
            return "in the local store"
        case Remote():
            return "published by the authors; downloaded on first use"
        case Untrained(seed):
            return f"initial values of seed {seed}"
        case Unpublished(reason):
            return reason
