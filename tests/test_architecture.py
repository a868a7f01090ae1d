"""Which way imports go, and what each wing may reach."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import limbeck

ROOT = Path(limbeck.__file__).parent

# a room → the rooms that it may import; docs/architecture.md says why
ALLOWED = {
    "errors": set(),
    "features": {"errors"},
    "table_files": {"errors"},
    "files": {"errors"},
    "registry": {"errors"},
    "graphs": {"errors", "features", "files", "table_files"},
    "training": {"errors", "files", "graphs"},
    "students": {"errors", "graphs", "training"},
    "teachers": {"errors", "files", "graphs", "training", "students", "registry"},
    "methods": {"errors", "graphs", "training", "students", "teachers", "registry"},
    "runtime": {"errors", "features"},
    "scoring": {"errors", "features", "table_files", "runtime"},
    "serving": {"errors", "features", "files", "table_files", "runtime"},
    "export": {"errors", "graphs", "students", "teachers", "runtime"},
    "evaluation": {
        "errors",
        "features",
        "files",
        "graphs",
        "training",
        "students",
        "teachers",
        "methods",
        "export",
        "runtime",
        "registry",
    },
    "reports": {"errors", "files", "graphs", "evaluation"},
    "testing": {
        "errors",
        "graphs",
        "training",
        "students",
        "teachers",
        "methods",
        "export",
        "runtime",
        "evaluation",
    },
}

ANSWERING = ("errors", "features", "files", "table_files", "runtime", "scoring", "serving")


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports() -> list[tuple[str, str, str]]:
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        room = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                if name.split(".")[0] == "limbeck":
                    found.append((str(file.relative_to(ROOT)), room, room_of(name)))
    return found


def test_imports_go_one_way():
    wrong = [
        f"{file} imports limbeck.{target}"
        for file, room, target in imports()
        if room in ALLOWED and target and target != room and target not in ALLOWED[room]
    ]
    assert wrong == []


def test_every_room_is_on_the_list():
    rooms = {
        path.name.removesuffix(".py")
        for path in ROOT.iterdir()
        if (path.is_dir() and any(path.glob("*.py"))) or path.suffix == ".py"
    }
    assert rooms - set(ALLOWED) == {"__init__", "__main__", "cli"}


BLOCKED = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"blocked: {{name}}", name=name)

sys.meta_path.insert(0, Block())
{code}
"""


def run_without(blocked: list[str], code: str) -> None:
    script = BLOCKED.format(blocked=blocked, code=code)
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("room", ANSWERING)
def test_the_answering_wing_needs_no_training_library(room):
    names = ["torch", "torch_geometric", "scipy", "sklearn", "numba", "pydantic", "yaml", "onnx"]
    names.append("redis")
    run_without(names, f"import limbeck.{room}")


def test_importing_limbeck_imports_nothing_heavy():
    code = (
        "import sys, limbeck; "
        "heavy = {'torch', 'torch_geometric', 'pyarrow', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_line_starts_without_torch():
    run_without(["torch", "torch_geometric", "scipy", "sklearn"], "import limbeck.cli")


def test_a_missing_extra_is_named():
    code = (
        "import limbeck\n"
        "try:\n    limbeck.distill\n"
        "except limbeck.errors.MissingExtraError as error:\n"
        "    assert \"pip install 'limbeck[train]'\" in str(error), error\n"
        "else:\n    raise SystemExit('no error')\n"
    )
    run_without(["torch", "torch_geometric"], "import limbeck.errors\n" + code)


def test_public_names_are_all_there():
    assert set(limbeck.__all__) <= set(dir(limbeck))
    for name in limbeck.__all__:
        assert getattr(limbeck, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'distil'"):
        limbeck.distil  # noqa: B018
