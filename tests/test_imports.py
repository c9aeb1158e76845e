"""Imports go one way: base <- data <- model <- results <- export <- scripts, with training beside results.

Read from the source, those inside functions too; base is the modules directly in sam_lora/.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT

MAY_IMPORT = {
    "base": set(),
    "data": {"base"},
    "model": {"base", "data"},
    "training": {"base", "data", "model"},
    "results": {"base", "data", "model"},
    "export": {"base", "data", "model", "results"},
    "door": {"base", "data", "model", "results"},  # sam_lora/sam.py, which users import and the package does not
}
DOOR = "sam_lora.sam"
SCRIPT_FOLDERS = ("demo", "benchmarks", "pretrain")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


PACKAGE = {module_name(path): path for path in (ROOT / "sam_lora").rglob("*.py")}
SCRIPTS = {module_name(path): path for folder in ("", *SCRIPT_FOLDERS) for path in (ROOT / folder).glob("*.py")}
FOLDERS = sorted(path.parent for path in PACKAGE.values() if path.name == "__init__.py")


def room(module: str) -> str:
    """The part of the package that a module belongs to."""
    if module == DOOR:
        return "door"
    folder = PACKAGE[module].parent
    return "base" if folder.name == "sam_lora" else folder.name


def imported(path: Path) -> Iterator[str]:
    """Every module of this project that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import, which this test does not follow"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            candidates = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
            candidates.append(f"{path.parent.name}.{parts[0]}")  # a script finds its neighbours by their bare names
            yield from [module for module in candidates if module in PACKAGE or module in SCRIPTS][:1]


def is_script(path: Path) -> bool:
    return '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("module", sorted(PACKAGE))
def test_the_package_imports_one_way(module):
    allowed = MAY_IMPORT[room(module)] | {room(module)}
    forbidden = {other for other in imported(PACKAGE[module]) if other in SCRIPTS or room(other) not in allowed}
    assert not forbidden


@pytest.mark.parametrize("module", sorted(SCRIPTS))
def test_no_script_imports_another(module):
    scripts = {other for other in imported(SCRIPTS[module]) if other in SCRIPTS and is_script(SCRIPTS[other])}
    assert not scripts


def test_no_module_imports_itself_by_a_detour():
    modules = PACKAGE | SCRIPTS
    graph = {module: {other for other in imported(path) if other != module} for module, path in modules.items()}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_folder_says_what_lives_there_and_what_does_not(folder):
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert docstring and len(docstring.splitlines()) >= 3
    if folder.name != "sam_lora":  # that one is the map
        assert "Not here: " in docstring


def test_every_folder_of_modules_is_a_package_with_several():
    folders = {path.parent for path in PACKAGE.values()}
    assert folders == set(FOLDERS)
    assert not [folder for folder in folders if len(list(folder.glob("*.py"))) < 3]  # __init__ and two
