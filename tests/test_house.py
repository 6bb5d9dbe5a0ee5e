"""The rules of the house: which way imports go, what is installed, what may be tracked.

pytest tests/test_house.py
"""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("views", "analysis", "probes", "kernels", "data")  # each may import those to its right
LOCKS = ("requirements.lock", "requirements-nodeps.lock")
MEGABYTE = 1_000_000
MOST_TRACKED = 50 * MEGABYTE
LINT_IMPORTS = "from importlinter.cli import lint_imports_command; lint_imports_command()"

# Spelled so that this file doesn't match itself.
MACHINE_PATHS = re.compile(
    r"(?<![\w.-])/(?:work|root)/"  # someone's checkout, someone's home
    r"|(?<![\w.-])/(?:home|Users)/\w"
    r"|(?<![\w.-])/opt/(?:pypi|wheels)"
    r"|\.\./(?:shared)"
    r"|file:/{2,}"
)


def run_python(code: str, *arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `code` from `cwd` in a fresh interpreter that finds `cwd` first and no other checkout of ours."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    return run_python(LINT_IMPORTS, "--no-cache", cwd=tree, PYTHONIOENCODING="utf-8")


def house_in_small(folder: Path, **imports: str) -> Path:
    """A tree with our rooms and our contracts, where each named room holds one line of code."""
    shutil.copy(ROOT / "pyproject.toml", folder)
    for room in ROOMS:
        (folder / room).mkdir()
        (folder / room / "__init__.py").write_text(imports.get(room, "") + "\n", encoding="utf-8")
    return folder


def imported_modules(source: Path) -> Iterator[str]:
    """Every module that a file imports by name, wherever in the file the import stands."""
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"), filename=str(source))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def top_level(module: str) -> str:
    return module.partition(".")[0]


def tracked_files() -> list[Path]:
    """What git tracks, and what it would track at the next `git add`."""
    if not (ROOT / ".git").exists():
        pytest.skip("this copy of headscope is no git checkout, so nothing in it is tracked")
    listing = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert listing.returncode == 0, listing.stderr
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def locked_lines(lock: str) -> list[str]:
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def locked_versions() -> dict[str, Version]:
    pins = [Requirement(line) for lock in LOCKS for line in locked_lines(lock)]
    return {canonicalize_name(pin.name): Version(next(iter(pin.specifier)).version) for pin in pins}


def declared_requirements() -> list[str]:
    with (ROOT / "pyproject.toml").open("rb") as file:
        settings = tomllib.load(file)
    project = settings["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [*settings["build-system"]["requires"], *project["dependencies"], *extras]


# Imports


def test_every_import_in_the_house_goes_one_way():
    finished = lint_imports(ROOT)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_a_house_whose_imports_all_go_down_is_let_through(tmp_path):
    tree = house_in_small(
        tmp_path,
        views="import analysis, streamlit",
        analysis="import probes, data, torch",
        probes="import kernels, transformers",
        kernels="import torch",
    )
    finished = lint_imports(tree)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.mark.parametrize(
    ("room", "line", "broken"),
    [
        ("kernels", "import probes", "one way"),
        ("kernels", "import data", "one way"),
        ("probes", "from analysis import anything", "one way"),
        ("analysis", "import views", "one way"),
        ("data", "import kernels", "one way"),
        ("kernels", "def load():\n    import transformers", "tensors only"),
        ("analysis", "import streamlit", "know the screen"),
        ("views", "import torch", "never compute"),
    ],
)
def test_a_forbidden_import_is_caught_wherever_it_stands(tmp_path, room, line, broken):
    finished = lint_imports(house_in_small(tmp_path, **{room: line}))
    assert finished.returncode == 1, finished.stdout + finished.stderr
    verdict = re.search(rf"{broken}.*?(KEPT|BROKEN)", finished.stdout, re.DOTALL)
    assert verdict is not None
    assert verdict[1] == "BROKEN", finished.stdout


def test_every_folder_of_code_in_a_room_is_a_package_so_that_the_contract_sees_it():
    folders = {source.parent for room in ROOMS for source in (ROOT / room).rglob("*.py")}
    assert sorted(str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").exists()) == []


def test_no_room_imports_the_front_door():
    importers = [
        str(source.relative_to(ROOT))
        for room in ROOMS
        for source in (ROOT / room).rglob("*.py")
        if "app" in map(top_level, imported_modules(source))
    ]
    assert importers == []


def test_the_dashboard_imports_no_torch_of_its_own():
    sources = [ROOT / "app.py", *(ROOT / "views").rglob("*.py")]
    assert (ROOT / "app.py").is_file(), "app.py is missing, so there is nothing to hold to this rule"
    assert len(sources) > 1, "views/ holds no page, so there is nothing to hold to this rule"
    heavy = {"torch", "triton", "transformers", "transformer_lens"}
    guilty = {
        str(source.relative_to(ROOT)): found
        for source in sources
        if (found := heavy.intersection(map(top_level, imported_modules(source))))
    }
    assert guilty == {}


# What is read from disk is data, never code


PICKLES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def unpickled(source: str) -> list[str]:
    """What in a file could run code that a file on disk holds: a pickle, by whatever name it is read."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in names if top_level(name) in PICKLES]
        elif isinstance(node, ast.Call):
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            called = ast.unparse(node.func)
            if (
                called.endswith("read_pickle")
                or (called == "torch.load" and given.get("weights_only") != "True")
                or given.get("allow_pickle", "False") != "False"
                or (called.endswith(("cache_data", "cache_resource")) and "persist" in given)  # kept as pickles
            ):
                found.append(ast.unparse(node))
    return found


def test_no_room_reads_a_pickle():
    sources = [ROOT / "app.py", *(source for room in ROOMS for source in (ROOT / room).rglob("*.py"))]
    guilty = {str(source.relative_to(ROOT)): unpickled(source.read_text(encoding="utf-8")) for source in sources}
    assert len(guilty) > 100
    assert {source: found for source, found in guilty.items() if found} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    import pickle as p",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "np.load(file, allow_pickle=True)",
        "np.load(file, allow_pickle=trusted)",
        "pd.read_pickle(file)",
        "st.cache_data(persist='disk')",
    ],
)
def test_a_pickle_is_recognised_by_whatever_name_it_is_read(line):
    assert unpickled(line)


def test_reading_arrays_as_arrays_is_let_through():
    assert unpickled("np.load(file)\ntorch.load(file, weights_only=True)\nimport json\nst.cache_data(ttl=3)") == []


# Our package named kernels, and Hugging Face's


def test_transformers_does_not_mistake_our_kernels_folder_for_hugging_faces_package():
    finished = run_python(
        "import transformers, kernels, pathlib\n"
        "import transformers.integrations.hub_kernels\n"
        "from transformers.models.llama.modeling_llama import LlamaForCausalLM\n"
        "from transformers.utils.import_utils import is_kernels_available\n"
        "print(is_kernels_available(), pathlib.Path(kernels.__file__).resolve().parent)",
        cwd=ROOT,
        HF_HUB_OFFLINE="1",
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.split(maxsplit=1) == ["False", f"{ROOT / 'kernels'}\n"], (
        "Transformers compares the version of whichever distribution provides `kernels` with the range it knows: "
        "keep headscope's version outside it, and leave `__version__` out of kernels/__init__.py"
    )


def test_hugging_faces_kernels_distribution_is_neither_installed_nor_locked():
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("kernels")
    assert "kernels" not in locked_versions()


# The lock files


@pytest.mark.parametrize("lock", LOCKS)
def test_every_lock_line_pins_one_exact_version_from_an_index(lock):
    lines = locked_lines(lock)
    assert lines
    exact = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+(?:; [a-z_]+ == '[a-z0-9]+')?")
    assert [line for line in lines if not exact.fullmatch(line)] == []


def test_no_package_is_locked_twice():
    names = [canonicalize_name(Requirement(line).name) for lock in LOCKS for line in locked_lines(lock)]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("declared", declared_requirements())
def test_what_pyproject_asks_for_is_locked_at_a_version_it_allows(declared):
    requirement = Requirement(declared)
    locked = locked_versions().get(canonicalize_name(requirement.name))
    assert locked is not None, f"{requirement.name} is not in the lock: make lock"
    assert locked in requirement.specifier


# What is tracked


def test_all_tracked_files_together_stay_under_50_megabytes():
    sizes = {path: path.stat().st_size for path in tracked_files()}
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:5]
    assert sizes
    assert sum(sizes.values()) < MOST_TRACKED, [f"{path.relative_to(ROOT)}: {sizes[path]}" for path in largest]


def test_no_tracked_text_file_names_a_path_of_the_machine_it_was_written_on():
    found = []
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" in content:
            continue  # not text
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), 1):
            if match := MACHINE_PATHS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {match[0]}")
    assert found == []


@pytest.mark.parametrize("path", ["work/main", "root/.cache", "home/me", "opt/wheels"])
def test_a_machine_path_is_recognised_but_a_longer_path_that_ends_alike_is_not(path):
    assert MACHINE_PATHS.search(f"see /{path}/notes.txt")
    assert not MACHINE_PATHS.search(f"https://example.org/{path}/notes.txt")


# The front gate


def test_make_without_a_target_lists_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony is not None
    listing = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split(maxsplit=2)[1:] for line in listing.stdout.splitlines()]
    assert sorted(name for name, _ in listed) == sorted(phony[1].split())


def test_an_interpreter_too_old_gets_one_sentence_and_nothing_is_installed(tmp_path):
    for name in ("Makefile", "pyproject.toml", *LOCKS):
        shutil.copy(ROOT / name, tmp_path)
    finished = subprocess.run(
        ["make", "--no-print-directory", "setup", "PYTHON=false"], cwd=tmp_path, capture_output=True, text=True
    )
    assert finished.returncode != 0
    assert "Python 3.11 or newer" in finished.stderr
    assert not (tmp_path / ".venv").exists()


def test_what_continuous_integration_runs_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
