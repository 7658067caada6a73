"""The command line: verbs only. Each verb imports what it needs when it is called.

Exit codes: 0 done; 1 some items failed; 2 wrong usage or configuration; 3 data or weights missing
or broken; 130 interrupted. A `NeurodiffError` is printed as one ``error: ...`` on standard error,
without a traceback; any other exception is a fault of neurodiff and keeps its traceback.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from neurodiff.cli_attribution import app as attribution_app
from neurodiff.cli_batch import app as batch_app
from neurodiff.cli_ct import ct_app
from neurodiff.cli_decode import evaluate, reconstruct
from neurodiff.cli_fit import fit
from neurodiff.cli_options import Root, Seed, Subject, show, subject_of, told
from neurodiff.cli_prepare import prepare, unpack
from neurodiff.cli_report import figures, report_app
from neurodiff.cli_scans import app as scans_app
from neurodiff.cli_weights import weights_app
from neurodiff.core.errors import DataError

if TYPE_CHECKING:
    import pandas as pd


class Demo(enum.StrEnum):
    """The demonstrations there are."""

    mind3d = "mind3d"
    brain_diffuser = "brain-diffuser"
    ldae = "ldae"
    ct = "ct"
    attribution = "attribution"


class Size(enum.StrEnum):
    """How much work a demonstration does."""

    demo = "demo"
    tiny = "tiny"


class Verbs(TyperGroup):
    """Turns our own errors and an interruption into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        with told():
            return super().invoke(ctx)


app = typer.Typer(
    cls=Verbs,
    help="Neural decoding and scientific imaging: recordings in, reconstructions and scores out.",
    epilog="Exit codes: 0 done, 1 some items failed, 2 wrong usage or configuration, "
    "3 data or weights missing or broken.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import neurodiff

        typer.echo(f"neurodiff {neurodiff.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
    offline: Annotated[
        bool, typer.Option("--offline", help="End with an error if anything asks the network.")
    ] = False,
) -> None:
    """Neural decoding and scientific imaging: recordings in, reconstructions and scores out."""
    if offline:
        from neurodiff.core.preflight import forbid_network

        forbid_network()


@app.command()
def demo(
    kind: Annotated[Demo, typer.Argument(help="Which demonstration.")] = Demo.mind3d,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the run and the page.")
    ] = Path("demo"),
    seed: Seed = 0,
    size: Annotated[
        Size, typer.Option("--size", help="demo: the real one; tiny: checks the plumbing.")
    ] = Size.demo,
) -> None:
    """Simulate a subject, train, decode held-out recordings, score, and write one HTML page.

    Nothing is downloaded. A second call repeats nothing that is done.
    """
    from neurodiff.analysis.demo import run_demo

    show(run_demo(kind.value, out, seed, size.value))


@app.command()
def check(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Name or path of a card.")],
    root: Root = None,
    subject: Subject = None,
) -> None:
    """Tell what of a data set is there, missing or broken, before any work is done."""
    from neurodiff.datasets.opening import check_dataset

    table = check_dataset(dataset, root=root, subject=subject_of(subject))
    typer.echo(_as_text(table))
    bad = table[table["status"] != "ok"]
    if len(bad):
        raise DataError(f"{len(bad)} of {len(table)} entries of {dataset} are missing or broken")
    typer.echo(f"all {len(table)} entries are in order")


# The help lists commands in the order in which they are added: that of a study.
for verb in (unpack, prepare, fit, reconstruct, evaluate, figures):
    app.command()(verb)


@app.command()
def doctor(
    fs: Annotated[
        list[Path] | None,
        typer.Option("--fs", metavar="DIR", help="Try a file system for batches; repeatable."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="NAME", help="What is missing of a data set.")
    ] = None,
    root: Root = None,
) -> None:
    """Look at the installation: versions, system libraries, memory, places for weights."""
    from neurodiff.core.doctor import diagnose, summary

    findings = diagnose()
    for folder in fs or []:
        from neurodiff.jobs_filesystem import check_filesystem

        findings += check_filesystem(folder)
    if data is not None:
        from neurodiff.core.config import find_shared
        from neurodiff.core.preflight import missing, need_of_card
        from neurodiff.core.safe_io import read_yaml

        card = read_yaml(find_shared("datasets", data))
        findings += missing([need_of_card(card, root)])
    for finding in findings:
        typer.echo(str(finding))
    text, code = summary(findings)
    typer.echo(text)
    if code:
        raise typer.Exit(code)


def _as_text(table: pd.DataFrame) -> str:
    """One entry a row: status and what on the first line, the rest of the columns below it."""
    lines = []
    for entry in table.to_dict("records"):
        status, what, *rest = [str(entry.pop("status")), *map(str, entry.values())]
        lines.append(f"{status:<8} {what}")
        lines.extend(f"{'':<8} {line}" for text in rest for line in text.splitlines())
    return "\n".join(lines)


app.registered_commands += scans_app.registered_commands
app.registered_commands += attribution_app.registered_commands
app.add_typer(weights_app, name="weights")
app.add_typer(ct_app, name="ct")
app.add_typer(report_app, name="report")
app.add_typer(batch_app, name="batch")


def main() -> None:
    """Entry point of the ``neurodiff`` command."""
    app(prog_name="neurodiff")


if __name__ == "__main__":
    main()
