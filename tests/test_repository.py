"""What is tracked by git: nothing large, nothing that the project did not mean to keep."""

import ast
import re
import subprocess
import sys
from importlib import metadata
from pathlib import PurePosixPath

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LARGEST = 300_000  # bytes
LARGE_FILES = {"sam_lora/weights/sam_vit_mini.pth"}

TOP_LEVEL_NAMES = {"LICENSE", "Makefile", "README.md", "pyproject.toml", ".gitignore", "requirements.lock"}
TOP_LEVEL_PATTERNS = ("*.py", "requirements*.txt")


def git(*arguments: str) -> list[str]:
    """The NUL-separated output of a git command in this checkout; skips the test where there is none."""
    try:
        done = subprocess.run(["git", *arguments, "-z"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode:
        pytest.skip(f"not a git checkout: {done.stderr.strip()}")
    return [name for name in done.stdout.split("\0") if name]


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Tracked files, as POSIX paths below the repository's root."""
    names = git("ls-files")
    if "README.md" not in names:
        pytest.skip(f"{ROOT} is not a git checkout of its own")
    return [name for name in names if (ROOT / name).is_file()]


def test_large_files_are_those_on_the_list(tracked):
    large = {name for name in tracked if (ROOT / name).stat().st_size > LARGEST}
    assert large == LARGE_FILES


def test_the_top_level_holds_scripts_and_settings_only(tracked):
    top_level = [PurePosixPath(name) for name in tracked if "/" not in name]
    assert not [path for path in top_level if path.name not in TOP_LEVEL_NAMES
                and not any(path.match(pattern) for pattern in TOP_LEVEL_PATTERNS)]


def test_no_tracked_file_is_one_that_gitignore_names(tracked):
    assert git("ls-files", "--cached", "--ignored", "--exclude-per-directory=.gitignore") == []


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text.splitlines()[0] and "Version 2.0, January 2004" in text.splitlines()[1]
    assert "END OF TERMS AND CONDITIONS" in text


# ---- requirements -----------------------------------------------------------------------------------------------

def requirements(name: str) -> list[Requirement]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
    return [Requirement(line) for line in lines if line and not line.startswith("-")]


def locked() -> dict[str, str]:
    """Canonical names and versions in requirements.lock, each pinned."""
    pins = {}
    for pin in requirements("requirements.lock"):
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and canonicalize_name(pin.name) not in pins
        pins[canonicalize_name(pin.name)] = specifier.version
    return pins


RUNTIME, DEVELOPMENT = requirements("requirements.txt"), requirements("requirements-dev.txt")


@pytest.mark.parametrize("requirement", RUNTIME + DEVELOPMENT, ids=lambda requirement: requirement.name)
def test_the_lock_pins_a_version_in_the_range(requirement):
    assert requirement.specifier.contains(locked()[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", RUNTIME, ids=lambda requirement: requirement.name)
def test_what_the_scripts_need_has_a_lowest_version_and_a_limit(requirement):
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators in ({">=", "<"}, {"=="})


def test_the_lock_pins_whatever_these_bring_along():
    """Walks through what is installed, where that is what the lock says."""
    pins, waiting, seen = locked(), [*RUNTIME, *DEVELOPMENT], set()
    if any(metadata.version(requirement.name).partition("+")[0] != pins[canonicalize_name(requirement.name)]
           for requirement in waiting):
        pytest.skip("other versions are installed than the lock has")
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name in seen or name.startswith(("nvidia-", "cuda-", "triton")):  # pinned by a CUDA build of torch itself
            continue
        seen.add(name)
        waiting += [needed for needed in map(Requirement, metadata.requires(name) or [])
                    if needed.marker is None or needed.marker.evaluate({"extra": ""})]
    assert not seen - set(pins)


def test_whatever_is_imported_is_required(tracked):
    """Not left to be brought along by something else."""
    providers = metadata.packages_distributions()
    required = {canonicalize_name(requirement.name) for requirement in RUNTIME}
    own = {PurePosixPath(name).stem for name in tracked} | {"sam_lora", *sys.stdlib_module_names}
    files = [name for name in tracked if name.endswith(".py") and not name.startswith("tests/")]
    imported = {module.partition(".")[0] for name in files
                for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8")))
                for module in ([node.module] if isinstance(node, ast.ImportFrom) else
                               [alias.name for alias in node.names] if isinstance(node, ast.Import) else [])}
    assert not {module for module in imported - own
                if not {canonicalize_name(name) for name in providers.get(module, [module])} & required}


# ---- the README's tree --------------------------------------------------------------------------------------

TREE_LINE = re.compile(r"^([ │├└─]*)([\w.-]+(?:/[\w.-]+)*/?)(?: |$)")


def readme_tree() -> set[str]:
    """The paths in the block under "What is where"; folders end in a slash, indented lines lie in the folder above."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"\n## What is where\n.*?```\n(.*?)```", readme, re.DOTALL)[1]
    paths, above = set(), [(-1, "")]  # above: indentation and path of the folders that may hold the line
    for line in block.splitlines():
        match = TREE_LINE.match(line)
        assert match, f"no path at the start of the line: {line}"
        indentation = len(match[1])
        while above[-1][0] >= indentation:
            above.pop()
        path = above[-1][1] + match[2]
        paths.add(path)
        if path.endswith("/"):
            above.append((indentation, path))
    return paths


def test_the_readmes_tree_names_what_is_there():
    assert not [path for path in readme_tree() if not (ROOT / path).exists()]


def test_the_readmes_tree_names_every_script_and_every_folder(tracked):
    paths = [PurePosixPath(name) for name in tracked if not name.startswith(".")]
    folders = {f"{path.parts[0]}/" for path in paths if len(path.parts) > 1}
    folders |= {f"sam_lora/{path.parts[1]}/" for path in paths if path.parts[0] == "sam_lora" and len(path.parts) > 2}
    scripts = {path.name for path in paths if len(path.parts) == 1 and path.suffix == ".py"}
    assert not (folders | scripts) - readme_tree()
