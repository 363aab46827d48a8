"""The import direction: errors, types <- objectives, data, model <- recipe <- train <- evaluation, serve, demo <- cli.

The walk reads the source with `ast`, so an import inside a function counts too.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "preftune"

# Each part of the package and the parts it may import, beside itself.
BASE = {"errors", "types"}
KEPT = BASE | {"lock"}
MIDDLE = BASE | {"objectives", "data", "model", "recipe"}
ALLOWED = {
    "errors": set(),
    "types": {"errors"},
    "lock": {"errors"},  # one process at a file
    "objectives": BASE,
    "data": BASE,
    "model": BASE | {"objectives", "data"},
    "recipe": BASE | {"objectives", "data", "model"},
    "train": MIDDLE | {"endpoint"},
    "endpoint": KEPT,  # a client for OpenAI-compatible endpoints
    "generation": BASE | {"data", "model"},  # prompts in, token ids out: the transformers engine
    "onpolicy": MIDDLE | KEPT | {"train", "endpoint", "generation", "serve"},
    "evaluation": MIDDLE | KEPT | {"train", "endpoint", "generation", "serve"},
    "autopsy": MIDDLE | KEPT | {"train", "evaluation", "onpolicy"},
    "report": BASE | {"train", "evaluation"},
    "serve": MIDDLE | KEPT | {"train", "endpoint", "generation"},
    "api": BASE | {"data", "model", "generation", "serve"},
    "export": MIDDLE | KEPT | {"train", "serve"},
    "web": MIDDLE | {"train", "generation", "serve"},
    "experiments": MIDDLE,  # runs are processes of their own
    "demo": MIDDLE | {"train", "evaluation", "serve"},
    "cli": MIDDLE
    | {"train", "endpoint", "generation", "onpolicy", "evaluation", "report", "serve", "api", "export", "web"}
    | {"experiments", "demo", "autopsy"},
}
ENTRY_POINTS = {"preftune", "preftune.__main__"}  # the public names (lazy), and `python -m preftune`


def read_package() -> dict[str, str]:
    """Module name -> source."""
    sources = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


def imported(module: str, source: str) -> list[tuple[str, str | None, bool]]:
    """(module, imported name, only for types) of every import statement."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, None, id(node) in typing_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively; write the full name"
            found += [(str(node.module), alias.name, id(node) in typing_only) for alias in node.names]
    return found


def edges(sources: dict[str, str], with_typing: bool = True) -> set[tuple[str, str]]:
    """(importer, imported) between modules of the package."""
    found = set()
    for module, source in sources.items():
        for target, name, typing_only in imported(module, source):
            if target.split(".")[0] != "preftune" or (typing_only and not with_typing):
                continue
            submodule = f"{target}.{name}"
            found.add((module, submodule if submodule in sources else target))
    return found


def wrong_edges(sources: dict[str, str]) -> list[str]:
    """Imports that point the wrong way."""
    wrong = []
    for importer, target in sorted(edges(sources)):
        if importer in ENTRY_POINTS or target == "preftune":
            continue
        part, other = importer.split(".")[1], target.split(".")[1]
        if part != other and other not in ALLOWED[part]:
            wrong.append(f"{importer} -> {target}")
    return wrong


def ring(sources: dict[str, str]) -> list[str]:
    """The modules of one ring of imports, or nothing."""
    graph: dict[str, set[str]] = {}
    for importer, target in edges(sources, with_typing=False):
        if importer != target:
            graph.setdefault(importer, set()).add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_part_of_the_package_has_its_place():
    parts = {module.split(".")[1] for module in read_package() if module not in ENTRY_POINTS}
    assert parts <= set(ALLOWED)
    assert {"errors", "types", "objectives", "recipe", "cli"} <= parts


def test_imports_point_downwards():
    assert wrong_edges(read_package()) == []


def test_there_is_no_ring():
    assert ring(read_package()) == []


def test_objectives_need_torch_and_the_standard_library_alone():
    allowed = {"torch", "preftune", *sys.stdlib_module_names}
    for module, source in read_package().items():
        if module.startswith("preftune.objectives"):
            roots = {target.split(".")[0] for target, _, _ in imported(module, source)}
            assert roots <= allowed, module


def test_from_the_package_itself_only_the_version_is_imported():
    for module, source in read_package().items():
        if module in ENTRY_POINTS:
            continue
        names = {name for target, name, _ in imported(module, source) if target == "preftune"}
        assert names <= {"__version__"}, module


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("preftune.data.planted", "import preftune.model.load"),
        ("preftune.data.planted", "from preftune.train import step"),
        ("preftune.types", "from preftune.objectives.base import Objective"),
        ("preftune.recipe.planted", "def f():\n    from preftune.train.run import train"),
        ("preftune.train.planted", "from preftune.cli.main import main"),
        ("preftune.objectives.planted", "from preftune.data import pack"),
        ("preftune.model.planted", "import typing\nif typing.TYPE_CHECKING:\n    from preftune.recipe import Recipe"),
    ],
)
def test_a_planted_wrong_edge_is_found(importer, line):
    assert wrong_edges(read_package() | {importer: line})


def test_a_planted_ring_is_found():
    planted = {
        "preftune.data.one": "from preftune.data import two",
        "preftune.data.two": "from preftune.data.three import x",
        "preftune.data.three": "def f():\n    import preftune.data.one",
    }
    assert set(ring(read_package() | planted)) == set(planted)
