"""The command line: parse, then import what the command needs, then run it."""

import contextlib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

import prefloop
from prefloop.types import PrefloopError, to_json

STAGE_HELP = {
    "sft": "Fine-tune the recipe's model on demonstrations.",
    "collect": "Sample answers to prompts.",
    "label": "Have the collected answers compared.",
    "reward": "Fit a reward model on the comparisons.",
    "rejection": "Sample several answers to each prompt and fine-tune on the best.",
    "ppo": "Train the policy against the reward model, on a KL leash.",
    "group": "Train the policy by comparing answers to one prompt: GRPO and its relatives.",
    "direct": "Fit the policy on the comparisons themselves: DPO and its relatives, KTO.",
    "online": "Fit the policy on pairs of its own fresh answers, judged as they come: online DPO.",
    "evaluate": "Compare the policy with its baselines on held-out prompts (`evaluate reward`: report on a reward).",
    "evaluate_reward": "Report on a reward: accuracy, calibration, biases, what to do about them.",
}

app = typer.Typer(
    help="The whole preference loop: SFT, sampling, labels, reward model, PPO, evaluation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
labels = typer.Typer(help="Move judgments in and out of the label store.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(labels, name="labels")


class EvaluateGroup(TyperGroup):
    """`evaluate RECIPE` is `evaluate policy RECIPE`; `evaluate reward RECIPE` is a command beside it."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args[:1] in (["reward"], ["policy"]) else ["policy", *args])


EVALUATIONS = {"policy": "evaluate", "reward": "evaluate_reward"}
evaluate = typer.Typer(cls=EvaluateGroup, rich_markup_mode=None)
app.add_typer(evaluate, name="evaluate", help=STAGE_HELP["evaluate"])

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe (TOML).", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, for example ppo.kl.target=4; repeatable."),
]
Annotator = Annotated[
    Literal["simulated", "people", "judge"] | None,
    typer.Option("--annotator", help="Who compares answers; short for --set label.annotator=..."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and everything else on stderr.")]
RunPath = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder, such as runs/quickstart.", show_default=False)
]
Database = Annotated[
    str, typer.Option("--database", metavar="URL", help="SQLAlchemy URL; without it prefloop.db in this folder.")
]


def main() -> None:
    """Entry point of `prefloop`; a user's own "module:function" is looked for in the current folder too."""
    sys.path.insert(0, "")
    app(prog_name="prefloop")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(prefloop.__version__)
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]


@app.callback()
def _options(version: Version = False) -> None:
    pass


class RecipeCommand(TyperCommand):
    """A command that reads a recipe; its help ends with the keys of the stage's section, or of the whole recipe."""

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # typer keeps the types of both to itself
        from prefloop.configs.describe import describe, stage_keys
        from prefloop.configs.pipeline import RecipeConfig

        stage = str(self.name)
        if ctx.parent and ctx.parent.info_name == "evaluate":
            stage = EVALUATIONS[stage]
        title = f"Keys of section [{stage}] (--set {stage}.KEY=VALUE)" if stage in STAGE_HELP else "Keys of a recipe"
        with formatter.section(title):
            keys = stage_keys(stage) if stage in STAGE_HELP else describe(RecipeConfig)
            formatter.write_dl([(key.name, f"{key.help} ({key.kind}; default {key.default})") for key in keys])


def _stage_command(stage: str) -> Callable[..., None]:
    def command(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
        finish(lambda: _run_stage(recipe, overrides or [], stage), as_json)

    return command


def _label(
    recipe: RecipePath, annotator: Annotator = None, overrides: Overrides = None, as_json: AsJson = False
) -> None:
    finish(lambda: _run_stage(recipe, _by(annotator, overrides), "label"), as_json)


def _evaluate_reward(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    finish(lambda: _run_stage(recipe, overrides or [], "evaluate_reward"), as_json, _show_findings)


_OWN: Mapping[str, Callable[..., None]] = {"label": _label, "evaluate_reward": _evaluate_reward}
_UNDER = {stage: (evaluate, name) for name, stage in EVALUATIONS.items()}
for _stage, _help in STAGE_HELP.items():
    _group, _name = _UNDER.get(_stage, (app, _stage))
    _group.command(_name, help=_help, cls=RecipeCommand)(_OWN.get(_stage) or _stage_command(_stage))


@app.command("run", cls=RecipeCommand)
def run(recipe: RecipePath, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run all stages of a recipe; what is finished is kept, what was interrupted continues."""
    finish(lambda: _run_recipe(recipe, overrides), as_json, _show_report)


@app.command("quickstart", cls=RecipeCommand)
def quickstart(annotator: Annotator = None, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Run the shipped recipe: the whole loop on a small real model."""
    finish(lambda: _run_recipe(_quickstart_recipe(), _by(annotator, overrides)), as_json, _show_report)


@app.command("report")
def report(run: RunPath, as_json: AsJson = False) -> None:
    """Write report.html and report.json of a run anew, from its samples and labels."""

    def work() -> Mapping[str, Any]:
        from prefloop.evals.report import build_report

        return build_report(run)

    finish(work, as_json, _show_report)


@app.command("chat")
def chat(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Run folder, checkpoint or model.")],
    temperature: Annotated[float, typer.Option(help="Sampling temperature, above 0.", min=1e-6)] = 0.7,
    max_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", min=1)] = 256,
    seed: Annotated[int, typer.Option(help="Seed of the answers.")] = 0,
    best_of: Annotated[
        int, typer.Option(metavar="N", help="Sample so many answers and show the one that --reward scores best.", min=1)
    ] = 1,
    reward: Annotated[
        str, typer.Option(metavar="REWARD", help="Reward run's folder, several (mean:A,B), or module:function.")
    ] = "",
) -> None:
    """Talk to a checkpoint; an empty line starts over, Ctrl-D ends."""

    def work() -> Mapping[str, Any]:
        from prefloop.stages.chat import run

        return run(
            checkpoint, temperature=temperature, max_tokens=max_tokens, seed=seed, best_of=best_of, reward=reward
        )

    finish(work, as_json=False, stopped="stopped")


@app.command("serve")
def serve(
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Address to listen on; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Port to listen on.", show_default="the first free one from 8765 on"),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="NAME", help="Host name under which others reach this server; repeatable."),
    ] = None,
    tls_certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Certificate chain (PEM), for https.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="Private key of the certificate (PEM).")] = None,
    public_url: Annotated[
        str, typer.Option(metavar="URL", help="https address of a reverse proxy on this machine, which speaks TLS.")
    ] = "",
    add_admin: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Make this account an admin with a password, which is asked for. Needed once before other machines"
            " may reach the server.",
        ),
    ] = None,
    database: Database = "",
) -> None:
    """Serve the labeling app for this folder, and print the link to it. Ctrl-C stops it."""
    password = typer.prompt("Password", hide_input=True, confirmation_prompt=True) if add_admin else ""

    def work() -> Mapping[str, Any]:
        from prefloop.web import serve as web

        place = web.Place(
            host=host, port=port, names=names or (), certificate=tls_certificate, private_key=tls_key, public=public_url
        )
        web.serve(Path(), database, place, admin=(add_admin, password) if add_admin else None)
        return {}

    finish(work, as_json=False)


@labels.command("export")
def export_labels(
    run: RunPath,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help=".jsonl, .jsonl.gz, .parquet, .csv, or a folder of `datasets`.")
    ],
    format: Annotated[
        str,
        typer.Option(
            help="jsonl, parquet and datasets hold it all; csv is for spreadsheets; preferences and demonstrations are"
            " what the stages train on. Without it: by FILE's ending."
        ),
    ] = "",
    pseudonyms: Annotated[
        Path | None,
        typer.Option(metavar="KEYFILE", help="Replace names by pseudonyms that depend on this file's bytes."),
    ] = None,
    database: Database = "",
    as_json: AsJson = False,
) -> None:
    """Write a run's labels: raw, and for each pair majority, posterior, margin and weight. A manifest goes beside."""

    def work() -> Mapping[str, Any]:
        from prefloop.store.exchange import export
        from prefloop.store.labels import open_store
        from prefloop.store.private import pseudonym_key

        key = None if pseudonyms is None else pseudonym_key(pseudonyms)
        with open_store(database) as store:
            manifest = export(store, _label_run(run, store), file, format, key=key)
        return {name: manifest[name] for name in ("format", "rows", "comparisons", "labels", "files", "log_head")}

    finish(work, as_json)


@labels.command("import")
def import_labels(
    run: RunPath,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            help=".jsonl, .json, .csv (also .gz), .parquet, a folder that `datasets` saved, or datasets:NAME.",
        ),
    ],
    pairs: Annotated[int, typer.Option(help="Pairs drawn of each prompt's answers.", min=1)] = 1,
    ways: Annotated[
        int, typer.Option(help="Answers that are compared at a time; above 2 they are ranked.", min=2, max=9)
    ] = 2,
    seed: Annotated[int, typer.Option(help="Seed of the draw.")] = 0,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out rows that do not fit, and count them.")
    ] = False,
    database: Database = "",
    as_json: AsJson = False,
) -> None:
    """Add a file's comparisons, with the judgments that it has of them, to a run and to its campaign, if it has one.

    What is there already is left as it is. Layouts: docs/data.md."""

    def work() -> Mapping[str, Any]:
        from prefloop.store.campaigns import Campaigns
        from prefloop.store.clock import Clock
        from prefloop.store.imports import import_items
        from prefloop.store.labels import open_store
        from prefloop.store.private import KEY, workspace_key

        key = workspace_key(Path()) if Path(KEY).exists() else None
        how: dict[str, Any] = {"pairs": pairs, "ways": ways, "seed": seed, "skip_bad": skip_bad, "key": key}
        with open_store(database) as store:
            campaigns, name = Campaigns(store.engine, Clock()), _label_run(run, store)
            made = import_items(store, campaigns, name, file, **how)
        return asdict(made)

    finish(work, as_json)


@labels.command("prioritise")
def prioritise_labels(
    run: RunPath,
    reward: Annotated[
        str,
        typer.Option(metavar="REWARD", help="Reward run's folder, or several: mean:A,B.", show_default=False),
    ],
    by: Annotated[
        Literal["disagreement", "near-miss"],
        typer.Option(help="How much the reward models disagree on who wins, or how near that is to a half."),
    ] = "disagreement",
    database: Database = "",
    as_json: AsJson = False,
) -> None:
    """Have a campaign ask first what would teach the reward models most; uniform picks keep their share."""

    def work() -> Mapping[str, Any]:
        from prefloop.store.labels import open_store

        with open_store(database) as store:
            name = _label_run(run, store)
        from prefloop.configs.shared import EngineConfig
        from prefloop.stages.priorities import prioritise

        return prioritise(database, name, reward, by, EngineConfig())

    finish(work, as_json)


@labels.command("verify")
def verify_labels(database: Database = "", as_json: AsJson = False) -> None:
    """Go through the audit log and every judgment; fails where something was changed, removed or slipped in."""

    def work() -> Mapping[str, Any]:
        from prefloop.store.labels import open_store

        with open_store(database) as store:
            return asdict(store.verify())

    finish(work, as_json)


@labels.command("backup")
def backup_labels(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new SQLite file.", show_default=False)],
    database: Database = "",
    as_json: AsJson = False,
) -> None:
    """Copy the label database, as it is at this moment, while others go on working with it."""

    def work() -> Mapping[str, Any]:
        from prefloop.store.db import backup
        from prefloop.store.labels import open_store

        with open_store(database) as store:
            return backup(store.engine, file)

    finish(work, as_json)


def _label_run(run: Path, store: Any) -> str:
    """A run or campaign that is known by this name; else the store names labels after the label stage's folder, from
    the workspace on."""
    from prefloop.store.campaigns import Campaigns
    from prefloop.store.clock import Clock

    if str(run) in {one.run for one in (*store.runs(), *Campaigns(store.engine, Clock()).all())}:
        return str(run)
    folder = run if run.name == "label" else run / "label"
    return str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder)


def _by(annotator: str | None, overrides: list[str] | None) -> list[str]:
    return [*(overrides or ()), *([f"label.annotator={annotator}"] if annotator else [])]


def _run_stage(path: Path, overrides: list[str], stage: str) -> Mapping[str, Any]:
    from prefloop.configs.load import load_recipe

    recipe = load_recipe(path, overrides)
    from prefloop.stages.pipeline import run_stage

    return run_stage(recipe, stage)


def _run_recipe(path: Path, overrides: list[str] | None) -> Mapping[str, Any]:
    from prefloop.configs.load import load_recipe

    recipe = load_recipe(path, overrides or ())
    from prefloop.stages import pipeline

    return pipeline.run(recipe)


def _quickstart_recipe() -> Path:
    """In an installed package beside this file, in a checkout at the repository's root."""
    package = Path(__file__).parent
    installed = package / "recipes" / "quickstart.toml"
    return installed if installed.exists() else package.parents[1] / "recipes" / "quickstart.toml"


def _show(result: Mapping[str, Any]) -> None:
    for key, value in result.items():
        typer.echo(f"{key:<28} {value if isinstance(value, str) else json.dumps(value)}")


def _summary_of(module: str) -> Callable[[Mapping[str, Any]], None]:
    """Shows a result by that module's `terminal_summary`."""

    def show(result: Mapping[str, Any]) -> None:
        from rich.console import Console

        Console(highlight=False).print(import_module(module).terminal_summary(result))

    return show


_show_report, _show_findings = map(_summary_of, ("prefloop.evals.report", "prefloop.evals.reward_page"))


def finish(
    work: Callable[[], Mapping[str, Any]],
    as_json: bool,
    show: Callable[[Mapping[str, Any]], None] = _show,
    stopped: str = "stopped; the same command continues",
) -> None:
    """Do the work and show its result; what a user can mend becomes one line and an exit status."""
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            result = to_json(work())
    except PrefloopError as error:
        _fail(" ".join(str(error).split()), 1, as_json)
    except KeyboardInterrupt:
        _fail(stopped, 130, as_json)
    except OSError as error:
        _fail(f"{error.filename or 'A file'}: {error.strerror}; look at its permissions and the disk.", 1, as_json)
    if as_json:
        finite = json.loads(json.dumps(result), parse_constant=lambda _: None)  # JSON has no NaN
        typer.echo(json.dumps(finite))
    else:
        show(result)


def _fail(message: str, status: int, as_json: bool) -> NoReturn:
    if as_json:
        typer.echo(json.dumps({"error": message}))
    typer.echo(f"prefloop: {message}", err=True)
    raise typer.Exit(status)
