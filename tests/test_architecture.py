"""The house rules, read from the sources: who imports whom, what is public, what is packaged, how large things are."""

from __future__ import annotations

import ast
import configparser
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import TypeVar

import click
import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("store", "extract", "probe", "analysis")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

MAY_IMPORT = {"store": set(), "extract": {"store"}, "probe": {"store"}, "analysis": {"store", "probe"}}
ONLY_IN = {
    "guided_diffusion": {"extract/adm.py"},
    "matplotlib": {"analysis/plots.py"},
    "timm": {"extract/timm_models.py"},
    "diffusers": {"extract/diffusers_models.py"},
    "transformers": {"extract/diffusers_models.py"},
    "click": {f"{folder}/cli.py" for folder in FOLDERS},
    "obstore": {"store/bucket.py", "store/connection.py", "store/object_storage.py"},
}
NOT_IN: dict[str, Sequence[str]] = {
    "torch": ["store"],
    "mpi4py": FOLDERS,
    "multiprocessing": FOLDERS,
    "pickle": FOLDERS,
    "joblib": FOLDERS,
}

Node = TypeVar("Node", bound=ast.AST)

MAX_LINES = 450
MAX_FUNCTION_LINES = 60

each_folder = pytest.mark.parametrize("folder", FOLDERS)


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources(folder: str) -> list[Path]:
    return [path for path in SOURCES if path.relative_to(ROOT).parts[0] == folder]


def nodes(path: Path, kind: type[Node]) -> list[Node]:
    """All nodes of a kind, inside of functions too."""
    return [node for node in ast.walk(parsed(path)) if isinstance(node, kind)]


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [*nodes(path, ast.FunctionDef), *nodes(path, ast.AsyncFunctionDef)]


def roots(path: Path) -> set[str]:
    return {one.split(".")[0] for one in imports(path)}


@cache
def imports(path: Path) -> frozenset[str]:
    """Absolute names of the modules a file imports, anywhere in it; relative imports become ``diffssl.folder.…``."""
    package = ["diffssl", *path.relative_to(ROOT).parent.parts]
    found = {alias.name for node in nodes(path, ast.Import) for alias in node.names}
    for node in nodes(path, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        module = ".".join([*base, *([node.module] if node.module else [])])
        found |= {f"{module}.{alias.name}" for alias in node.names}
    for call in nodes(path, ast.Call):
        if ast.unparse(call.func) in ("importlib.import_module", "import_module", "__import__"):
            argument = call.args[0]
            found.add(str(argument.value) if isinstance(argument, ast.Constant) else "?")
    return frozenset(found)


def setup() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    return config


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


# Who imports whom


def test_there_is_something_to_read() -> None:
    assert {path.parent.name for path in SOURCES} == set(FOLDERS)
    found = {one for path in SOURCES for one in imports(path)}
    assert {"diffssl.store.FeatureStore", "torch", "numpy", "click", "matplotlib.figure.Figure"} <= found


@each_folder
def test_folders_import_only_what_the_design_allows(folder: str) -> None:
    for path in sources(folder):
        others = {one.split(".")[1] for one in imports(path) if one.startswith("diffssl.")} - {folder}
        assert (name(path), others - MAY_IMPORT[folder]) == (name(path), set())


@each_folder
def test_imports_inside_the_packages_are_relative(folder: str) -> None:
    for path in sources(folder):
        absolute = {alias.name for node in nodes(path, ast.Import) for alias in node.names}
        absolute |= {node.module or "" for node in nodes(path, ast.ImportFrom) if not node.level}
        own = {one for one in absolute if one.split(".")[0] in ("diffssl", *FOLDERS)}
        assert (name(path), own) == (name(path), set())


@pytest.mark.parametrize("package", ONLY_IN)
def test_some_packages_are_imported_in_one_place_only(package: str) -> None:
    assert {name(path) for path in SOURCES if package in roots(path)} == ONLY_IN[package]


@pytest.mark.parametrize("package", NOT_IN)
def test_some_packages_are_not_imported(package: str) -> None:
    assert not [name(path) for folder in NOT_IN[package] for path in sources(folder) if package in roots(path)]


def test_parts_of_guided_diffusion_that_want_mpi_are_not_imported() -> None:
    for path in SOURCES:
        assert not {"dist_util", "image_datasets"} & {part for one in imports(path) for part in one.split(".")}, name(path)


def test_nothing_is_imported_by_a_name_that_is_made_up_at_run_time() -> None:
    assert not [name(path) for path in SOURCES if "?" in imports(path)]


def test_nothing_forks() -> None:
    for path in SOURCES:
        assert not {ast.unparse(node) for node in nodes(path, ast.Attribute)} & {"os.fork", "os.forkpty"}, name(path)


def test_nothing_is_unpickled() -> None:
    for path in SOURCES:
        for call in nodes(path, ast.Call):
            if ast.unparse(call.func) == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert options.get("weights_only") == "True", name(path)


def test_no_handler_swallows_everything() -> None:
    assert not [name(path) for path in SOURCES for handler in nodes(path, ast.ExceptHandler) if handler.type is None]


def test_files_are_named_by_their_reason_to_exist() -> None:
    assert not {path.stem for path in SOURCES} & {"utils", "util", "helpers", "common", "misc"}


# What is packaged


def test_packages_are_the_folders() -> None:
    options = setup()["options"]
    folders = sorted(name(path.parent) for path in ROOT.glob("*/__init__.py") if path.parent.name not in ("tests", "build"))
    assert folders == sorted(FOLDERS)
    assert sorted(lines(options["packages"])) == [f"diffssl.{folder}" for folder in folders]
    where = dict(re.split(r"\s*=\s*", line) for line in lines(options["package_dir"]))
    assert where == {f"diffssl.{folder}": folder for folder in folders}
    assert not [path for folder in FOLDERS for path in (ROOT / folder).glob("*/**/*.py")]  # folders are flat


@each_folder
def test_types_and_data_travel_with_the_packages(folder: str) -> None:
    patterns = re.split(r",\s*", setup()["options.package_data"][f"diffssl.{folder}"])
    data = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert ROOT / folder / "py.typed" in data
    for path in data:
        assert any(path.relative_to(ROOT / folder).match(pattern) for pattern in patterns), path


@each_folder
def test_links_for_type_checkers_point_to_the_folders(folder: str) -> None:
    link = ROOT / ".typing" / "diffssl" / folder
    assert link.is_symlink()
    assert link.resolve() == ROOT / folder
    assert not link.readlink().is_absolute()


def test_console_scripts_are_commands() -> None:
    scripts = dict(re.split(r"\s*=\s*", line) for line in lines(setup()["options.entry_points"]["console_scripts"]))
    assert set(scripts) == {"diffssl-store", "diffssl-extract", "diffssl-probe", "diffssl-analyze"}
    for script, target in scripts.items():
        module = importlib.import_module(target.partition(":")[0])
        assert callable(EntryPoint(script, target, "console_scripts").load())
        assert any(isinstance(value, click.Command) for value in vars(module).values())


def test_every_import_is_a_requirement() -> None:
    names = {
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "guided_diffusion": "guided-diffusion-sdk",
        "google_crc32c": "google-crc32c",
        "huggingface_hub": "huggingface-hub",
        "distributed": "dask",  # dask[distributed]
    }
    names_of_extras = ("hf", "torchvision", "timm", "diffusers")
    extras = [line for extra in names_of_extras for line in lines(setup()["options.extras_require"][extra])]
    required = {re.split(r"[\s\[<>=]", line)[0] for line in lines(setup()["options"]["install_requires"]) + extras}
    outside = set().union(*(roots(path) for path in SOURCES)) - {"diffssl"} - sys.stdlib_module_names
    outside = {names.get(root, root) for root in outside}
    assert outside - required == {"obstore"}  # store/location.py says what to install where it is missing
    assert [re.split(r"[\s<>=]", line)[0] for line in lines(setup()["options.extras_require"]["s3"])] == ["obstore"]


# What is public


def ruff_order(names: list[str]) -> list[str]:
    """As ruff sorts ``__all__``: constants, then classes, then the rest."""

    def group(one: str) -> int:
        return 0 if one.isupper() and len(one) > 1 else 1 if one[:1].isupper() else 2

    return sorted(names, key=lambda one: (group(one), one))


@each_folder
def test_public_names_are_there_and_sorted(folder: str) -> None:
    module = importlib.import_module(f"diffssl.{folder}")
    assert module.__all__ == ruff_order(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
    for one in module.__all__:
        assert hasattr(module, one)
    init = parsed(ROOT / folder / "__init__.py")
    imported = {alias.asname or alias.name for node in init.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert set(module.__all__) == imported - {"annotations"}


def documented(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[tuple[str, bool]]:
    """Public functions, classes and methods, and whether each has a docstring."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not child.name.startswith("_"):
            yield f"{prefix}{child.name}", bool(ast.get_docstring(child))
            if isinstance(child, ast.ClassDef):
                yield from documented(child, f"{prefix}{child.name}.")


def test_everything_public_has_a_docstring() -> None:
    assert not [name(path) for path in SOURCES if not ast.get_docstring(parsed(path))]
    every = [(f"{name(path)}: {one}", there) for path in SOURCES for one, there in documented(parsed(path), "")]
    assert len(every) > 100
    assert [one for one, there in every if not there] == []


def test_everything_is_annotated() -> None:
    for path in SOURCES:
        for node in functions(path):
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            bare = [a.arg for a in arguments if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
            assert not bare, f"{name(path)}: {node.name}"
            assert node.returns is not None, f"{name(path)}: {node.name}"


# How large things are


def test_files_and_functions_can_be_read_at_once() -> None:
    long_files = {name(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: lines for path, lines in long_files.items() if lines > MAX_LINES} == {}
    sizes = {
        f"{name(path)}:{node.lineno}": (node.end_lineno or 0) - node.lineno + 1 for path in SOURCES for node in functions(path)
    }
    assert min(sizes.values()) > 0
    assert {function: lines for function, lines in sizes.items() if lines > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("folder", ["probe", "analysis"])
def test_tests_mirror_the_folders(folder: str) -> None:
    tested = {path.stem.removeprefix("test_") for path in (ROOT / "tests" / folder).glob("test_*.py")}
    assert tested <= {path.stem for path in (ROOT / folder).glob("*.py")}
