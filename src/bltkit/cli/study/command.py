"""The command of a study that follows the contract of `study/study.py`: the same options for all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bltkit.cli.study.study_options import Out, Report, Threads, circumstances, measured, only_report, show
from bltkit.cli.terminal import Json, print_text, progress_bar

if TYPE_CHECKING:
    from bltkit.study.study import Study

TABLE = "table.md"


def command_of(name: str, study: "type[Study]") -> Callable[..., None]:
    """The function that typer turns into `blt study NAME`."""

    def command(
        out: Out = Path(name),
        plan: Annotated[Path | None, typer.Option(help="A TOML file with the plan's fields.")] = None,
        set_: Annotated[
            list[str] | None, typer.Option("--set", help="KEY=VALUE, a field of the plan (repeatable).")
        ] = None,
        dry_run: Annotated[
            bool, typer.Option("--dry-run", help="Print what would be measured; measure nothing.")
        ] = False,
        threads: Threads = None,
        report: Report = False,
        as_json: Json = False,
    ) -> None:
        if report:
            only_report({"--plan": plan, "--set": set_, "--dry-run": dry_run or None, "--threads": threads})
            rows = [row for row in measured(out) if row.get("what") == name]
            if not rows:
                raise ValueError(f"--out {out}: it holds no rows of study {name!r}; measure first, without --report")
            _report(_plan(name, study, {}, rows[0]["plan"]), rows, out, as_json)
            return
        from bltkit.config import apply_overrides, load_toml
        from bltkit.study.study import missing_units

        fields = load_toml(plan, set_ or []) if plan is not None else apply_overrides({}, set_ or [])
        chosen = _plan(name, study, fields, {})
        if dry_run:
            missing = set(missing_units(chosen, name, out))
            for unit in chosen.units():
                print_text(unit if unit in missing else f"{unit}  (measured)")
            return
        _report(chosen, _measure(chosen, name, out, threads), out, as_json)

    defaults = (
        f"{field} = {info.get_default(call_default_factory=True)!r}" for field, info in study.model_fields.items()
    )
    command.__doc__ = f"{(study.__doc__ or name).strip()}\n\nFields of the plan: {'; '.join(defaults) or 'none'}."
    return command


def _plan(name: str, study: "type[Study]", fields: dict[str, Any], stored: dict[str, Any]) -> "Study":
    from bltkit.config import parse

    chosen: Study = parse(study, stored | fields, f"study {name}")
    return chosen


def _measure(study: "Study", name: str, out: Path, threads: int | None) -> list[dict[str, Any]]:
    import torch

    from bltkit.study.study import run_study

    if threads is not None:
        torch.set_num_threads(threads)
    with progress_bar(name) as progress:
        return run_study(study, name, out, circumstances(), progress=progress)


def _report(study: "Study", rows: list[dict[str, Any]], out: Path, as_json: bool) -> None:
    """Table on stdout and in a file, pictures in files."""

    def text(rows: Any) -> str:
        return study.report(rows).rstrip() + "\n"

    def write(rows: Any, directory: Path) -> list[Path]:
        (directory / TABLE).write_text(text(rows), encoding="utf-8")
        return list(study.figures(rows, directory))

    show(rows, out / TABLE, text, write, as_json)
