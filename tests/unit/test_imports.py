"""Imports point one way, the command line and the stage modules stay light, and nothing grows too
long.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.dag import STAGES
from tests.support.command import ROOT

OURS = ("schemas", "pipeline", "stages")
LONG = {"stages/report/charts.py", "schemas/config.py"}
"""Files that may have more than 450 lines."""
RAYS_DAG = {f"pipeline/{name}.py" for name in ("dag", "executor", "planning")}
HEAVY = {"torch", "ray", "diffusers", "transformers", "accelerate", "pandas", "scipy"}
ARRAYS = {"numpy", "pyarrow", "PIL"}
"""A quarter of a second that planning does without."""


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


def ours(names: set[str]) -> set[str]:
    """Those of our own modules."""
    return {name for name in names if name.split(".")[0] in OURS}


def below(names: set[str], *places: str) -> set[str]:
    """Those that are, or lie in, one of some packages."""
    return {n for n in names if any(n == p or n.startswith(f"{p}.") for p in places)}


def strangers(path: Path, *allowed: str) -> set[str]:
    """What a file imports of ours that is none of `allowed`."""
    own = ours(imported(path))
    return own - below(own, *allowed) - {place.rpartition(".")[0] for place in allowed}


def lines_of(path: Path) -> int:
    return len(path.read_text().splitlines())


# Who may import whom: schemas <- pipeline/base <- stages <- pipeline/commands


def test_schemas_import_neither_torch_nor_ray_nor_us():
    for path in modules("schemas"):
        assert not roots(imported(path)) & (HEAVY | ARRAYS), path
        assert not strangers(path, "schemas"), path


def test_the_base_of_the_engine_imports_schemas_and_itself_alone():
    for path in modules("pipeline/base"):
        assert not strangers(path, "schemas", "pipeline.base"), path


def test_the_engine_imports_no_stage():
    """It knows them by name, and imports their modules when it runs them."""
    for path in sorted((ROOT / "pipeline").glob("*.py")):
        assert not below(imported(path), "stages"), path


def test_the_command_line_imports_its_commands_and_what_prepares_for_them_alone():
    path = ROOT / "pipeline" / "cli.py"
    assert not strangers(path, "pipeline.commands", "pipeline.machine")


def test_stages_import_of_the_engine_its_base_alone():
    for path in modules("stages"):
        assert not strangers(path, "schemas", "stages", "pipeline.base"), path


def test_at_the_top_of_the_stages_lie_the_stages_alone():
    found = {path.stem for path in (ROOT / "stages").glob("*.py")}
    assert found == {*STAGES, "__init__"}


def test_nothing_in_stages_imports_a_stage():
    for path in modules("stages"):
        found = below(imported(path), *(f"stages.{name}" for name in STAGES))
        assert not found, (path, found)


def test_the_method_knows_no_ray_no_storage_no_command_line():
    foreign = {"ray", "pipeline", "fsspec", "s3fs", "pyarrow", "typer", "diffusers"}
    for path in modules("stages/ladd"):
        assert not roots(imported(path)) & foreign, path
        assert not strangers(path, "schemas", "stages.ladd"), path


def test_the_report_knows_no_ray_no_storage_no_torch():
    for path in modules("stages/report"):
        assert not roots(imported(path)) & {"ray", "pipeline", "fsspec", "s3fs", "torch"}, path


@pytest.mark.parametrize("folder", ["stages/teachers", "stages/scores", "stages/shapes_world"])
def test_teachers_scores_and_world_know_no_engine(folder):
    for path in modules(folder):
        assert not roots(imported(path)) & {"ray", "pipeline"}, path


def test_no_test_imports_another_test_or_a_conftest():
    for path in modules("tests"):
        names = {name for name in imported(path) if name.startswith("tests.")}
        assert not {n for n in names if not below({n}, "tests.support")}, path


# How large a file and a function may be


def test_files_and_functions_are_short():
    found = []
    for path in (path for folder in OURS for path in modules(folder)):
        if path.relative_to(ROOT).as_posix() not in LONG and lines_of(path) > 450:
            found.append(f"{path}: {lines_of(path)} lines")
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                if length > 60:
                    found.append(f"{path}: {node.name} has {length} lines")
    assert not found, "\n".join(found)


def test_the_command_line_itself_is_short():
    assert lines_of(ROOT / "pipeline" / "cli.py") < 100


def test_only_dag_and_executor_touch_rays_dag():
    calls = {"bind", "get_args", "get_options", "get_stable_uuid", "execute"}
    for path in [*modules("pipeline"), *modules("stages")]:
        if path.relative_to(ROOT).as_posix() in RAYS_DAG:
            continue
        attributes = {
            n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)
        }
        names = imported(path)
        # A file that speaks to SQLite calls its `execute`, not a graph's.
        forbidden = calls - {"execute"} if "sqlite3" in names else calls
        assert not attributes & forbidden, path
        assert not any(n.startswith("ray.dag") for n in names), path


def test_no_dumping_grounds():
    for folder in OURS:
        for path in modules(folder):
            assert path.stem not in ("utils", "helpers", "common"), path


def test_nothing_that_is_read_can_run_code():
    """No pickle in any form, no code of others, no YAML that makes objects, no shell."""
    pickles = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal", "pandas", "runpy"}
    forbidden = {
        *("torch.save", "torch.load", "torch.hub.load", "torch.jit.load", "yaml.load"),
        *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
        *("tar.extract", "tar.extractall", "shutil.unpack_archive"),
    }
    for path in (path for folder in OURS for path in modules(folder)):
        assert not roots(imported(path)) & pickles, path
        for call in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)):
            name, where = ast.unparse(call.func), f"{path}:{call.lineno}"
            given = {word.arg: ast.unparse(word.value) for word in call.keywords}
            assert name not in forbidden, where
            assert given.get("allow_pickle", "False") == "False", where
            assert given.get("trust_remote_code", "False") == "False", where
            assert given.get("shell", "False") == "False", where
            if name.endswith((".read_array", ".load")) and "np" in name.split("."):
                assert "allow_pickle" in given, where
            if name.endswith(".from_pretrained") and "output_loading_info" in given:
                assert given.get("use_safetensors") == "True", where  # it loads weights


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["plan", "--preset", "shapes"], ["config", "schema"]],
)
def test_light_commands_import_nothing_heavy(arguments, tmp_path):
    code = (
        "import sys; from pipeline.cli import main\n"
        f"sys.argv = ['ladd-pipeline', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"found = sorted({HEAVY | ARRAYS!r} & set(sys.modules)); print(); print(found)"
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


def test_stage_modules_are_light_until_they_run():
    names = [f"stages.{name}" for name in STAGES]
    assert loaded_by(f"import {', '.join(names)}", HEAVY | ARRAYS) == "set()"


def test_help_needs_no_models():
    assert loaded_by("import pipeline.cli", {"pydantic", "yaml", "numpy"}) == "set()"


def test_the_comparison_is_light_until_it_is_used():
    assert loaded_by("import stages.compare", {"fastapi", "scipy", "torch"}) == "set()"


def loaded_by(code: str, heavy: set[str]) -> str:
    """Which of the heavy modules are imported by this code, in a process of its own."""
    found = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print({heavy!r} & {{*sys.modules}})"],
        env=_paths(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def _paths() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
