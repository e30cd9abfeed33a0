"""The house stands: imports point downward, nothing runs in a circle, what is public is documented."""

import ast
import doctest
import graphlib
import importlib
import inspect
import pathlib
import pkgutil

import pytest

import nscjax

ROOT = pathlib.Path(nscjax.__file__).parents[1]
ROOMS = (
    *("types", "check", "layout", "linalg", "measure"),
    "compress",
    *("wire", "cut", "link"),
    *("split", "u_shaped", "models", "remote"),
)
"""The library's rooms from the ground up: each may import those before it."""


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for top in ("nscjax", "train") for path in sorted((ROOT / top).rglob("*.py"))}
LIBRARY = [name for name in SOURCES if name.startswith("nscjax")]


def imports(name):
    """Returns the names of all modules that `name` imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            # `from package import module` needs the module; `from module import name` the module before it.
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {member if member in SOURCES else node.module for member in members}
    return found


def room(name):
    """Returns the position of the module's room from the ground; the package's own `__init__` stands below all."""
    parts = name.split(".")
    return ROOMS.index(parts[1]) if len(parts) > 1 else -1


def test_every_room_is_known():
    assert {name.split(".")[1] for name in LIBRARY if "." in name} <= set(ROOMS)


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_imports_only_downward(name):
    upward = [other for other in imports(name) if other.split(".")[0] == "nscjax" and room(other) > room(name)]
    assert not upward


@pytest.mark.parametrize("name", LIBRARY)
def test_the_library_never_imports_the_program(name):
    assert not [other for other in imports(name) if other.split(".")[0] in ("train", "tests", "benchmarks")]


@pytest.mark.parametrize("name", [name for name in LIBRARY if not name.startswith("nscjax.models")])
def test_flax_lives_in_models_and_in_the_program_alone(name):
    assert not [other for other in imports(name) if other.split(".")[0] in ("flax", "optax", "orbax")]


def test_no_imports_run_in_a_circle():
    graph = {name: {other for other in imports(name) if other in SOURCES and other != name} for name in SOURCES}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_peers_never_import_each_other():
    peers = [name for name in LIBRARY if name.startswith("nscjax.compress.baselines.")]
    for name in peers:
        assert not imports(name) & set(peers), name


def public_objects(module):
    """Yields (name, object) of every public function and class that `module` defines, and of the classes' methods."""
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value) or inspect.isclass(value):
            yield name, value
        if inspect.isclass(value):
            methods = [(key, method) for key, method in vars(value).items() if inspect.isfunction(method)]
            yield from ((f"{name}.{key}", method) for key, method in methods if not key.startswith("_"))


@pytest.mark.parametrize("name", LIBRARY)
def test_everything_public_is_documented(name):
    module = importlib.import_module(name)
    assert module.__doc__
    written = {key for key, value in public_objects(module) if (value.__doc__ or "").strip()}
    assert not [key for key, _ in public_objects(module) if key not in written]


@pytest.mark.parametrize("name", [name for name in LIBRARY if "__all__" in SOURCES[name].read_text()])
def test_listed_names_exist(name):
    module = importlib.import_module(name)
    assert sorted(set(module.__all__)) == sorted(module.__all__)
    assert all(hasattr(module, key) for key in module.__all__)


def has_examples(name):
    return ">>>" in SOURCES[name].read_text()


@pytest.mark.parametrize("name", [name for name in LIBRARY if has_examples(name)])
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted > 0
    assert result.failed == 0


def test_every_module_can_be_imported():
    found = {info.name for info in pkgutil.walk_packages(nscjax.__path__, "nscjax.")}
    assert found | {"nscjax"} == set(LIBRARY)
