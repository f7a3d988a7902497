"""Imports point one way (ARCHITECTURE.md), and the command line stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "ray", "diffusers", "transformers", "accelerate", "pandas", "scipy"}


def modules(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def imported(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_schemas_import_neither_torch_nor_ray_nor_us():
    for path in modules("schemas"):
        assert not roots(imported(path)) & (HEAVY | {"pipeline", "stages", "numpy", "pyarrow"}), (
            path
        )


def test_the_method_knows_no_ray_no_storage_no_command_line():
    for path in modules("stages/ladd"):
        names = imported(path)
        assert not roots(names) & {
            "ray",
            "pipeline",
            "fsspec",
            "s3fs",
            "pyarrow",
            "typer",
            "diffusers",
        }, path
        foreign = {n for n in names if n.startswith("stages.") and not n.startswith("stages.ladd")}
        assert not foreign, (path, foreign)


@pytest.mark.parametrize("folder", ["stages/teachers", "stages/scores", "stages/shapes_world"])
def test_teachers_scores_and_world_know_no_engine(folder):
    for path in modules(folder):
        names = roots(imported(path))
        assert "ray" not in names, path
        assert "pipeline" not in names, path


def test_the_base_of_the_engine_imports_no_stage():
    for name in ("stage", "store", "shards", "mapping", "training", "observe"):
        assert "stages" not in roots(imported(ROOT / "pipeline" / f"{name}.py")), name


def test_only_dag_and_executor_touch_rays_dag():
    calls = {"bind", "get_args", "get_options", "get_stable_uuid", "execute"}
    for path in [*modules("pipeline"), *modules("stages")]:
        if path.stem in ("dag", "executor", "planning"):
            continue
        attributes = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        names = imported(path)
        # A file that speaks to SQLite calls its `execute`, not a graph's.
        forbidden = calls - {"execute"} if "sqlite3" in names else calls
        assert not attributes & forbidden, path
        assert not any(n.startswith("ray.dag") for n in names), path


def test_no_dumping_grounds_and_no_pickle():
    for folder in ("pipeline", "schemas", "stages"):
        for path in modules(folder):
            assert path.stem not in ("utils", "helpers", "common"), path
            assert not roots(imported(path)) & {"pickle", "cloudpickle", "joblib", "dill"}, path
            calls = {
                ast.unparse(n.func)
                for n in ast.walk(ast.parse(path.read_text()))
                if isinstance(n, ast.Call)
            }
            assert not calls & {"torch.save", "torch.load"}, path


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["plan", "--preset", "shapes"], ["config", "schema"]],
)
def test_light_commands_import_nothing_heavy(arguments, tmp_path):
    code = (
        "import sys; from pipeline.cli import main\n"
        f"sys.argv = ['ladd-pipeline', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"found = sorted({HEAVY!r} & set(sys.modules)); print(); print(found)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=_paths(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def _paths() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": str(ROOT)}
