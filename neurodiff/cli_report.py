"""Verbs about reports: benchmark, diff and verify, and figures. Imports are inside each command.

``neurodiff report RUN...`` keeps its meaning: what is no command of the group is a run folder.
"""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

PAGE = "page"


class Reports(TyperGroup):
    """``report RUN...`` is ``report page RUN...``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [PAGE, *args]
        return super().parse_args(ctx, args)


class Format(enum.StrEnum):
    """Formats of figures."""

    svg = "svg"
    pdf = "pdf"


class Start(enum.StrEnum):
    """From where a run is done again."""

    fit = "fit"
    reconstruct = "reconstruct"
    evaluate = "evaluate"


report_app = typer.Typer(
    cls=Reports,
    help="Pages about runs, and what makes them believable. `report RUN...` writes the page of the "
    "pipeline.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="One run folder or more.")]
Out = Annotated[Path, typer.Option("--out", metavar="FILE", help="The HTML page to write.")]


@report_app.command(PAGE)
def page(runs: Runs, out: Out = Path("report.html")) -> None:
    """Write one HTML page about one run or several; it makes no network request."""
    from neurodiff.analysis import verbs
    from neurodiff.core.errors import UsageError

    if out.suffix.lower() not in {".html", ".htm"}:
        raise UsageError(f"--out {out} must name a file that ends in .html")
    typer.echo(str(verbs.report_runs(runs, out)))


@report_app.command("benchmark")
def benchmark(
    runs: Runs,
    out: Out = Path("report.html"),
    budget: Annotated[
        float,
        typer.Option("--budget", metavar="MB", help="Above it, a folder with linked files."),
    ] = 25.0,
    strict: Annotated[
        bool, typer.Option("--strict", help="A test stimulus in the training is an error.")
    ] = False,
) -> None:
    """The page with every check: data, leaks, weights, floors, uncertainty, published, replay.

    Several runs of one recipe with other seeds or subjects go into one page.
    """
    from neurodiff.analysis.benchmark_report import benchmark_page
    from neurodiff.core.progress import Progress

    shown = benchmark_page(
        runs, out, budget_mb=budget, strict=strict, progress=Progress.to_stdout()
    )
    typer.echo(str(shown))


@report_app.command("diff")
def diff(
    a: Annotated[Path, typer.Argument(metavar="A", help="A run folder, or a report's JSON.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="The other.")],
    tolerance: Annotated[
        float, typer.Option("--tolerance", metavar="R", help="Relative, of scores.")
    ] = 1e-6,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The differences as JSON.")
    ] = None,
) -> None:
    """What differs: settings, data, weights, versions, scores. Exit code 0 the same, 1 not."""
    from neurodiff.analysis.report_diff import diff_reports
    from neurodiff.core.atomic import write_json

    found = diff_reports(a, b, tolerance=tolerance)
    typer.echo(found.text())
    if out is not None:
        write_json(out, found.to_json())
    if found.exit_code:
        raise typer.Exit(found.exit_code)


@report_app.command("verify")
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Keep the replay in this new folder."),
    ] = None,
    start: Annotated[
        Start, typer.Option("--from", help="What to do again; later ones trust the earlier.")
    ] = Start.fit,
    rtol: Annotated[float, typer.Option("--rtol", help="Relative tolerance of means.")] = 1e-3,
    atol: Annotated[float, typer.Option("--atol", help="Absolute tolerance of means.")] = 1e-6,
    exact: Annotated[
        bool, typer.Option("--exact", help="Other bytes of weights and items count as well.")
    ] = False,
    venv: Annotated[
        Path | None,
        typer.Option(
            "--venv",
            metavar="CONSTRAINTS",
            help="Replay in a new virtual environment with these versions.",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option("--weights", metavar="DIR", help="Of the evaluation's networks.")
    ] = None,
) -> None:
    """Replay a run from its recipe in a fresh process and folder. Exit code 0 as before, 1 not."""
    from neurodiff.analysis.report_verify import verify_run
    from neurodiff.core.progress import Progress

    found = verify_run(
        run,
        out=out,
        start=start.value,
        rtol=rtol,
        atol=atol,
        exact=exact,
        venv=venv,
        weights=weights,
        progress=Progress.to_stdout(),
    )
    typer.echo(found.text())
    if found.exit_code:
        raise typer.Exit(found.exit_code)


def figures(
    what: Annotated[
        list[str],
        typer.Argument(metavar="RUN...|SPEC", help="Run folders, or a specification of figures."),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the figures.")
    ] = Path("figures"),
    format: Annotated[Format, typer.Option("--format", help="svg or pdf.")] = Format.svg,
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", help="Only this kind of figure; repeatable.")
    ] = None,
    root: Annotated[
        Path | None, typer.Option("--root", metavar="DIR", help="With SPEC: folder of the data.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With SPEC: say what would be made and drawn.")
    ] = False,
) -> None:
    """Draw figures as SVG or PDF with their numbers as CSV beside each.

    Of runs that are there; or of a specification (analysis/*.yaml), whose runs are made first.
    """
    from neurodiff.core.errors import UsageError
    from neurodiff.core.progress import Progress

    if all(Path(one).is_dir() for one in what):
        from neurodiff.analysis.report_figures import FigureSpec, write_figures

        if root is not None or dry_run:
            raise UsageError("--root and --dry-run go with a specification, not with run folders")
        specs = [FigureSpec(kind=kind) for kind in kinds] if kinds else None
        paths = write_figures([Path(one) for one in what], out, format.value, specs)
    else:
        from neurodiff.analysis.figure_specs import carry_out, read_specification, steps_of

        if len(what) != 1 or kinds:
            raise UsageError("give run folders, or one specification (without --kind)")
        specification = read_specification(what[0])
        if dry_run:
            typer.echo("\n".join(steps_of(specification)))
            return
        paths = carry_out(
            specification, out, root=root, format=format.value, progress=Progress.to_stdout()
        )
    for path in paths:
        typer.echo(str(path))
