"""``sanrobust table``: rebuild tables from records."""

from __future__ import annotations

from pathlib import Path

import click

from sanrobust.cli.options import PATH


@click.command()
@click.argument("experiment", type=click.Choice(("rotate", "pgd", "all")), default="all")
@click.option("--out", type=PATH, default=Path("results"), show_default=True, metavar="FOLDER",
              help="Folder of records and tables.")
@click.option("--paper/--no-paper", default=False,
              help="Add the paper's values and the differences (ImageNet runs).")
@click.option("--paper-only", is_flag=True,
              help="Write the paper's own tables to OUT/paper instead.")
def table(experiment: str, out: Path, paper: bool, paper_only: bool) -> None:
    """Rebuild OUT/rotation.* and OUT/pgd.* from the records of all complete runs."""
    from sanrobust.cli.report import print_summary, say
    from sanrobust.records import find_runs
    from sanrobust.summary import rebuild
    from sanrobust.tables import write_paper_tables
    if paper_only:
        say("wrote " + ", ".join(str(path) for path in write_paper_tables(out / "paper")))
        return
    wanted = ("rotate", "pgd") if experiment == "all" else (experiment,)
    present = [name for name in wanted if find_runs(out, name)] or wanted[:1]
    for name in present:
        print_summary(rebuild(out, name, paper=paper))
