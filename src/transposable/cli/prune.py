"""transposable prune: a model on disk, pruned by magnitude or on calibration text, and written."""

from __future__ import annotations

from pathlib import Path

import click

from transposable.cli import show
from transposable.cli.app import EXIT_CODES, debug_option, json_option


@click.command(
    name="prune",
    epilog=EXIT_CODES,
    short_help="Prune a model to a pattern and write it.",
)
@click.argument("src", type=click.Path(path_type=Path))
@click.option("--pattern", "-p", required=True, help="N:MT, N:M, N:MS or P%, e.g. 4:8T.")
@click.option(
    "--out", "-o", type=click.Path(path_type=Path), help="File or directory to write; may be SRC."
)
@click.option(
    "--include",
    "-i",
    multiple=True,
    metavar="GLOB|re:REGEX",
    help="Prune the tensors of these names, and no others, against the policy if need be. "
    "Repeatable.",
)
@click.option(
    "--exclude",
    "-x",
    multiple=True,
    metavar="GLOB|re:REGEX",
    help="Leave the tensors of these names dense; wins over --include. Repeatable.",
)
@click.option(
    "--method",
    default="magnitude",
    show_default=True,
    help="What chooses and updates the weights; all but magnitude need --calibration.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="UTF-8 text to run a Hugging Face encoder (a sample on each line) or causal LM on.",
)
@click.option("--scores", help="With --calibration: what the masks keep the most of.")
@click.option(
    "--mode",
    type=click.Choice(["sequential", "parallel"]),
    help="With --calibration: each layer on the inputs from pruned layers (sequential, the "
    "default) or from dense ones.",
)
@click.option(
    "--samples",
    type=click.IntRange(min=1),
    help="With --calibration: how many to take of the text; default 512.",
)
@click.option(
    "--seq-len",
    type=click.IntRange(min=2),
    help="With --calibration: tokens of a sample; default 256, or what the model takes.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="With --calibration: keep finished layers there, and go on after a kill.",
)
@click.option(
    "--device",
    metavar="cpu|cuda[:N]",
    help="With --calibration: where the model runs; default cpu.",
)
@click.option("--solver", default="auto", show_default=True, help="See 'transposable solvers'.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads; default: all cores.")
@click.option(
    "--layout",
    "layouts",
    multiple=True,
    metavar="[GLOB=]NAME",
    help="How tensors are read: linear, conv or stacked. Repeatable.",
)
@click.option(
    "--groups",
    multiple=True,
    metavar="GLOB=G",
    help="Groups of grouped convolutions, which the file does not tell. Repeatable.",
)
@click.option(
    "--masks",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Also write the masks, one bit a weight.",
)
@click.option("--dry-run", is_flag=True, help="Search the masks and report; write nothing.")
@json_option
@debug_option
def command(
    src: Path,
    pattern: str,
    out: Path | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    method: str,
    calibration: Path | None,
    scores: str | None,
    mode: str | None,
    samples: int | None,
    seq_len: int | None,
    resume: Path | None,
    device: str | None,
    solver: str,
    threads: int | None,
    layouts: tuple[str, ...],
    groups: tuple[str, ...],
    masks: Path | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Prune SRC to a pattern and write the result to --out.

    SRC is a .safetensors file, a sharded directory with its index, or a Hugging Face model
    directory. By default the largest weights are kept as they are. With --calibration the model
    runs on a text, and a --method such as adaprune also updates the weights that are kept.
    Without --include, biases, norms, embeddings, the first convolution, heads and everything else
    that is no inner weight stay dense; the list is printed.
    """
    if out is None and not dry_run:
        raise click.UsageError("give --out, the file or directory to write, or --dry-run")
    if dry_run and masks is not None:
        raise click.UsageError("--dry-run writes nothing; leave out --masks")
    from transposable.cli.setup import checked_solver, set_threads
    from transposable.export import Choice

    chosen = checked_solver(solver, pattern)
    set_threads(threads)
    choice = Choice(include, exclude, layouts, groups)
    target = None if dry_run else out
    if calibration is not None:
        from transposable.cli import calibrate

        how = calibrate.How(calibration, method, scores, mode, samples, seq_len, resume, device)
        calibrate.run(src, pattern, target, how, choice, solver, chosen, masks, as_json)
        return
    _check_magnitude(
        method,
        scores=scores,
        mode=mode,
        samples=samples,
        seq_len=seq_len,
        resume=resume,
        device=device,
    )
    from transposable.cli.prune_report import document, print_report, print_selection
    from transposable.export import open_source, plan, prune_model

    with open_source(src) as source:
        decisions = plan(source, pattern, choice)
        if not as_json:
            print_selection(source, decisions, pattern, solver, chosen.name)
        with show.progress("pruning") as progress:
            report = prune_model(
                source,
                pattern,
                target,
                choice=choice,
                solver=chosen,
                threads=threads,
                masks=masks,
                progress=progress,
            )
    if as_json:
        show.document(document(report, src, target, masks))
    else:
        print_report(report, target, masks)


def _check_magnitude(method: str, **options: str | int | Path | None) -> None:
    """Without calibration there is one method, and nothing to set about samples."""
    if method != "magnitude":
        from transposable.cli.calibrate import check_method

        check_method(method, options["scores"])
        raise click.UsageError(
            f"--method {method} needs --calibration FILE, a text to run the model on"
        )
    given = [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]
    if given:
        raise click.UsageError(f"{', '.join(given)}: only with --calibration FILE")
