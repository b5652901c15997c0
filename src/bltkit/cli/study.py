"""The verb `study`: measurements that answer a question, as rows, a table, a page and pictures in a directory.

A new study is its own folder below `study/` and a line in `STUDIES`, which names a subclass of `Study`: the options of
`blt study NAME` are made from its fields. A line may also name a function, which is a command with options of its own.
Modules are imported when their study is asked for.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin

import typer

from bltkit.cli.terminal import Json, lists, print_json, print_text, progress_bar, say, threads_option
from bltkit.cli.verb import Verb, Verbs

if TYPE_CHECKING:
    from bltkit.study.store import ResultStore
    from bltkit.study.study import Study

STUDIES = {
    "fast-decoding": "bltkit.study.fast_decoding.fast_decoding_study:FastDecodingStudy",
    "entropy": "bltkit.study.entropy_quality.entropy_study:EntropyStudy",
    "evaluations": "bltkit.cli.evaluation:evaluations",
    "robustness": "bltkit.study.robustness.robustness_study:RobustnessStudy",
    "scaling": "bltkit.study.scaling.scaling_study:ScalingStudy",
    "efficiency": "bltkit.study.efficiency:EfficiencyStudy",
    "ablation": "bltkit.study.ablation:AblationStudy",
}
"""Every study: its name, and `module:attribute`."""


class _Studies(Verbs):
    """Knows its commands, and the nearest one to a name that is not among them."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(STUDIES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        from bltkit.config import nearest

        if cmd_name not in STUDIES:
            raise ValueError(f"no study {cmd_name!r}{nearest(cmd_name, list(STUDIES))}")
        return study_command(cmd_name, STUDIES[cmd_name])


def study_command(name: str, target: str) -> Any:
    """The click command of a study. Raises ValueError where `target` names none."""
    from bltkit.registry import resolve

    function = resolve(target)
    if isinstance(function, type):
        function = _command_of(name, function)
    command = typer.Typer(add_completion=False)
    command.command(name, cls=Verb)(function)
    return typer.main.get_command(command)


app = typer.Typer(
    cls=_Studies,
    help="Run a study. Each has options of its own (`blt study NAME --help`); all take --out and --json.",
)

Values = Mapping[str, Any]
"""What the command line holds, by parameter; None where it says nothing."""


@dataclass(frozen=True)
class FieldOption:
    """The option that fills a field of a plan. pairs: each value is of the form NAME=VALUE."""

    field: str
    info: Any
    flags: tuple[str, ...]
    pairs: bool
    help: str
    annotation: Any

    @property
    def report(self) -> bool:
        """May it stand beside --report."""
        return bool(_extra(self.info).get("report"))

    @property
    def usage(self) -> str:
        """The option as a message asks for it."""
        metavar = _extra(self.info).get("metavar", "NAME=SOURCE" if self.pairs else self.field.upper())
        example = f", as in {self.flags[0]} {self.info.examples[0]}" if self.info.examples else ""
        return f"{self.flags[0]} {metavar}{example}"


def field_options(study: "type[Study]") -> list[FieldOption]:
    """The options of a study's fields, in the order of the fields."""
    names = [name for name in study.model_fields if study.option_fields is None or name in study.option_fields]
    return [option for name in names if (option := _field_option(study, name)) is not None]


def _extra(info: Any) -> Mapping[str, Any]:
    return info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}


def _field_option(study: "type[Study]", name: str) -> FieldOption | None:
    from bltkit.config import field_doc

    info = study.model_fields[name]
    extra, (kind, repeated, pairs) = _extra(info), _shape(info.annotation)
    if kind is None and "option" not in extra:
        return None
    flags = (extra.get("option", f"--{name.replace('_', '-')}"), *extra.get("aliases", ()))
    default = None if info.is_required() else info.get_default(call_default_factory=True)
    shown = ", ".join(map(str, default)) if isinstance(default, tuple | dict) else default
    doc = field_doc(study, name)
    if shown not in (None, "", False) and "default" not in doc:
        doc = f"{doc.removesuffix('.')}; default: {shown}." if doc else f"Default: {shown}."
    settings: dict[str, Any] = {"help": doc, "metavar": extra.get("metavar")}
    if "lists" in extra:
        settings |= {"callback": lists(extra["lists"]), "is_eager": True}
    elif name == "threads":
        settings |= {"callback": threads_option}
    place = typer.Argument(**settings) if extra.get("positional") else typer.Option(*flags, **settings)
    if kind is bool:
        annotation: Any = Annotated[bool, typer.Option(flags[0], help=doc)]
    else:
        value: Any = str if kind is None else kind
        annotation = Annotated[(list[value] if repeated else value) | None, place]
    return FieldOption(name, info, flags, pairs, doc, annotation)


def _shape(annotation: Any) -> tuple[Any, bool, bool]:
    """Type of an option's values (None: no text, number, switch or path), is it repeated, are its values pairs."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return _shape(arguments[0])
    if get_origin(annotation) in (Union, UnionType):
        shapes = [_shape(member) for member in arguments if member is not type(None)]
        return shapes[0] if len(shapes) == 1 else (None, False, False)
    if get_origin(annotation) is tuple:
        return _shape(arguments[0])[0], True, False
    if get_origin(annotation) is dict:
        return (str if arguments == (str, str) else None), True, True
    if str(get_origin(annotation)) == "typing.Literal":
        return str, False, False
    return (annotation if annotation in (str, int, float, bool, Path) else None), False, False


def _command_of(name: str, study: "type[Study]") -> Callable[..., None]:
    """The function that typer turns into `blt study NAME`."""
    options = field_options(study)
    taken = {flag for option in options for flag in option.flags}

    def command(**values: Any) -> None:
        _run(name, study, options, values)

    generic = {
        "out": (
            Path | None,
            typer.Option("--out", "-o", metavar="DIR", help="Directory of rows and report; a rerun resumes there."),
        ),
        "plan": (str | None, typer.Option("--plan", help=f"{', '.join(_presets(study))}, or a TOML file.")),
        "set_": (
            list[str] | None,
            typer.Option("--set", metavar="KEY=VALUE", help="A field of the plan (repeatable)."),
        ),
        "only": (
            list[str] | None,
            typer.Option("--only", metavar="PATTERN", help="Units by name or its part before a colon (repeatable)."),
        ),
        "minutes": (float | None, typer.Option("--minutes", help="Begin nothing further after these minutes.")),
        "dry_run": (bool, typer.Option("--dry-run", help="Print the units, or their cost; measure nothing.")),
        "threads": (int | None, typer.Option("--threads", callback=threads_option, help="Default: torch's.")),
        "report": (bool, typer.Option("--report", help="Write the report again, from the rows in --out.")),
    }  # fmt: skip
    annotations = {option.field: option.annotation for option in options}
    for key, (kind, option) in generic.items():
        # In an Annotated type, typer holds the first flag as the default.
        if not taken & {option.default, *(option.param_decls or ())}:
            annotations[key] = Annotated[kind, option]
    annotations["as_json"] = Json
    parameters = []
    for key, annotation in annotations.items():
        default = False if get_args(annotation)[0] is bool else None
        keyword = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter(key, keyword, default=default, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = annotations
    command.__doc__ = (study.__doc__ or name).strip()
    return command


def _presets(study: "type[Study]") -> dict[str, Callable[[], Values]]:
    return {"smoke": lambda: study.smoke().model_dump(mode="json"), **study.presets}


def _run(name: str, study: "type[Study]", options: Sequence[FieldOption], values: dict[str, Any]) -> None:
    from bltkit.study.report import require_extra
    from bltkit.study.store import ROWS, ResultStore

    out = values["out"] or (Path(study.default_out) if study.default_out else None)
    if values["report"]:
        place = _needed(out, name)
        _only_report(options, values)
        store = ResultStore(place, study.what)
        if not (place / ROWS).is_file():
            raise ValueError(f"--out {place}: there is no {ROWS} in it to report; measure first, without --report")
        if not store.rows():
            raise ValueError(
                f"--out {place}: it holds no rows of `blt study {name}` to report; measure first, without --report"
            )
        require_extra()
        _report(_reporter(name, study, options, values, store), store, values["as_json"])
        return
    plan = _plan(name, study, options, values)
    if values["dry_run"]:
        _dry_run(plan, out, values)
        return
    require_extra()
    _report(plan, _measure(name, plan, _needed(out, name), values), values["as_json"])


def _needed(out: Path | None, name: str) -> Path:
    if out is None:
        raise ValueError(f"study {name!r} needs --out DIR (or --dry-run, which tells what it would measure)")
    return out


def _says(values: Values, key: str) -> bool:
    """Does the command line hold a parameter; 0 is a value."""
    return values.get(key) is not None and values[key] is not False


def _given(options: Sequence[FieldOption], values: Values) -> dict[str, Any]:
    """Fields that the command line fills."""
    present = [option for option in options if _says(values, option.field)]
    return {
        option.field: _pairs(option.flags[0], values[option.field]) if option.pairs else values[option.field]
        for option in present
    }


def _only_report(options: Sequence[FieldOption], values: Values) -> None:
    """Raises ValueError for an option of measuring."""
    flags = {option.field: option.flags[0] for option in options if not option.report}
    flags |= {key: f"--{key.strip('_').replace('_', '-')}" for key in ("plan", "set_", "only", "minutes", "dry_run")}
    for key, flag in (flags | {"threads": "--threads"}).items():
        if _says(values, key):
            raise ValueError(f"{flag} is for measuring; --report only reads the rows in --out")


def _plan(name: str, study: "type[Study]", options: Sequence[FieldOption], values: Values) -> "Study":
    from bltkit.config import apply_overrides, load_toml, parse

    presets, chosen = _presets(study), study.default_plan or None if values["plan"] is None else values["plan"]
    fields: Values = {}
    if chosen in presets:
        fields = presets[chosen]()
    elif chosen is not None:
        if not chosen or not (chosen.endswith(".toml") or Path(chosen).exists()):
            raise ValueError(f"--plan {chosen!r} is neither a TOML file nor one of {', '.join(presets)}")
        fields = load_toml(chosen)
    fields = apply_overrides(fields, values.get("set_") or []) | _given(options, values)
    for option in options:
        if option.info.is_required() and option.field not in fields:
            raise ValueError(f"study {name!r} needs {option.usage}")
    plan: Study = parse(study, fields, f"study {name}")
    return plan


def _reporter(
    name: str, study: "type[Study]", options: Sequence[FieldOption], values: Values, store: "ResultStore"
) -> "Study":
    """The study that lays out stored rows: with their plan where they hold one, else without."""
    from bltkit.config import parse

    fields = _given([option for option in options if option.report], values)
    stored = store.rows()[0].get("plan")
    if isinstance(stored, Mapping):
        plan: Study = parse(study, {**stored, **fields}, f"study {name}")
        return plan
    return study.model_construct(**fields)


def _dry_run(plan: "Study", out: Path | None, values: Values) -> None:
    from bltkit.study.driver import measured_units, selected_units

    units = selected_units(plan, values.get("only") or ())
    cost = plan.estimate(units)
    if cost is not None:
        print_json(cost.to_json()) if values["as_json"] else print_text(cost.summary())
        return
    measured = set() if out is None else measured_units(plan, out, units)
    if values["as_json"]:
        print_json({"units": [{"name": unit.name, "measured": unit.name in measured} for unit in units]})
        return
    for unit in units:
        print_text(f"{unit.name}  (measured)" if unit.name in measured else unit.name)


def _measure(name: str, plan: "Study", out: Path, values: Values) -> "ResultStore":
    import torch

    from bltkit.bench.timing import threads_of
    from bltkit.study.driver import run_study

    threads = getattr(plan, "threads", None) or values.get("threads") or torch.get_num_threads()
    with threads_of(threads), progress_bar(name) as progress:
        return run_study(
            plan,
            out,
            _stamp(),
            only=values.get("only") or (),
            minutes=values.get("minutes"),
            progress=progress,
            say=say,
        )


def _stamp() -> dict[str, Any]:
    """Circumstances of a measurement, for its rows."""
    import shlex
    import sys

    import torch

    from bltkit.bench.record import commit, machine

    return {
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "machine": machine(torch.device("cpu")),
        "command": shlex.join(["blt", *sys.argv[1:]]),
    }


def _report(study: "Study", store: "ResultStore", as_json: bool) -> None:
    """The table on stdout and in a file, the page and the pictures in files."""
    from bltkit.study.report import write_report

    rows, frame = store.rows(), store.frame()
    if not rows:
        say("no row is finished yet")
        if as_json:
            print_json({"rows": [], "figures": [], "table": None, "page": None})
        return
    report = write_report(study, frame, store.out)
    if as_json:
        files = {"figures": list(map(str, report.figures)), "table": str(report.table), "page": str(report.page)}
        print_json({"rows": rows, **study.summary(frame), **files})
    else:
        print_text(report.text, end="")
    for path in (report.table, report.page, *report.figures):
        say(f"wrote {path}")


def _pairs(option: str, values: Sequence[str]) -> dict[str, str]:
    """NAME=SOURCE, several times. Raises ValueError for another form, and for a name given twice."""
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, source = value.partition("=")
        if not (equals and name.strip() and source.strip()):
            raise ValueError(f"{option} {value!r} is not NAME=SOURCE, such as plain=bltkit:tiny or prose=book.txt")
        if name in pairs:
            raise ValueError(f"{option} {value!r}: the name {name!r} is given twice; each needs its own")
        pairs[name] = source
    return pairs
