"""`init`, `config schema`, `config show` and `version`: write or show what a run is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.options import AsJson, ConfigFile, Preset, Settings, new_group
from schemas.errors import ConfigError

app = new_group()
config_app = new_group("Show the configuration or its schema.")


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder for pipeline.yaml.")] = Path(),
    preset: Annotated[str, typer.Option(help="The preset to start from.")] = "shapes",
    force: Annotated[bool, typer.Option(help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented pipeline.yaml."""
    from pipeline.config import PRESETS, read_preset

    read_preset(preset)
    path = folder / "pipeline.yaml"
    if path.exists() and not force:
        raise ConfigError(f"{path} already exists; --force overwrites it")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text((PRESETS / f"{preset}.yaml").read_text())
    print(f"wrote {path}; `ladd-pipeline plan -c {path}` shows what it would do")


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the versions of this command, of Python and of the main packages."""
    from pipeline.stage_task import environment

    found = environment()
    if as_json:
        print(found.model_dump_json())
        return
    ours = found.packages.pop("ladd-pipeline", "unknown")
    print(f"ladd-pipeline {ours}" + (f" ({found.git_commit[:12]})" if found.git_commit else ""))
    print(f"Python {found.python}")
    for name, number in found.packages.items():
        print(f"{name} {number}")


@config_app.command("schema")
def config_schema() -> None:
    """Print the configuration's JSON schema."""
    from schemas.words import documented_schema

    print(json.dumps(documented_schema(), indent=2))


@config_app.command("show")
def config_show(
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Settings = None,
    signed: Annotated[
        bool, typer.Option(help="Print addresses with their signatures and passwords.")
    ] = False,
) -> None:
    """Print the resolved configuration."""
    import yaml

    from pipeline.commands.opening import open_config

    resolved = open_config(config, preset, set_ or ())
    content = resolved.model_dump(mode="json") if signed else resolved.recorded()
    print(yaml.safe_dump(content, sort_keys=False), end="")
