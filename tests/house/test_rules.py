"""The rules of the house that neither ruff nor mypy nor import-linter can check."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "geoeco").rglob("*.py"))
TREES = {file: ast.parse(file.read_text(), str(file)) for file in SOURCES}


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def calls() -> list[tuple[Path, ast.Call, str]]:
    """Every call of the package with the dotted text of what is called."""
    return [
        (file, node, ast.unparse(node.func))
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def keyword(call: ast.Call, name: str) -> object:
    for item in call.keywords:
        if item.arg == name:
            return item.value.value if isinstance(item.value, ast.Constant) else ast.unparse(item.value)
    return None


def place(file: Path, node: ast.AST) -> str:
    return f"{file.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"


def test_no_write_escapes_the_check_of_shards():
    assert not [place(f, c) for f, c, _ in calls() if keyword(c, "safe_chunks") is not None]


def test_no_zarr_store_is_opened_in_a_way_that_wipes_it():
    """A run that is resumed must find what it wrote: templates are created once, then regions are written."""
    wiping = []
    for file, call, name in calls():
        of_zarr = name.startswith("zarr.") or name.rsplit(".", 1)[-1] in {"to_zarr", "open_group", "open_array"}
        if of_zarr and (keyword(call, "mode") in {"w", "w+"} or keyword(call, "overwrite") is True):
            wiping.append(place(file, call))
    assert not wiping


def test_yaml_is_read_by_safe_loaders_only():
    for file, call, name in calls():
        if not name.startswith("yaml."):
            continue
        assert name not in {"yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "yaml.unsafe_load_all"}, place(
            file, call
        )
        if name in {"yaml.load", "yaml.compose", "yaml.scan", "yaml.parse"}:
            loader = keyword(call, "Loader") or (ast.unparse(call.args[1]) if len(call.args) > 1 else None)
            own = {
                node.name: {ast.unparse(base) for base in node.bases}
                for node in ast.walk(TREES[file])
                if isinstance(node, ast.ClassDef)
            }
            bases = own.get(str(loader), {str(loader)})
            assert bases <= {"yaml.SafeLoader", "yaml.CSafeLoader"}, f"{place(file, call)}: {loader}"


def test_nothing_is_unpickled_and_no_text_is_run():
    for file, tree in TREES.items():
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {"pickle", "shelve", "marshal", "joblib"}, place(
                file, node
            )
    for file, call, name in calls():
        assert name not in {"eval", "exec", "pickle.load", "pickle.loads", "pandas.read_pickle", "pd.read_pickle"}, (
            place(file, call)
        )
        assert keyword(call, "allow_pickle") is not True, place(file, call)
        if name == "torch.load":
            assert keyword(call, "weights_only") is True, place(file, call)


def test_torchgeo_is_imported_by_adapter_files_only():
    users = {
        file.name
        for file, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "torchgeo" for a in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torchgeo")
    }
    assert users == {"torchgeo_adapter.py"}


def test_no_room_has_a_drawer_for_everything():
    assert not [f for f in SOURCES if f.stem in {"utils", "util", "helpers", "misc", "common"}]


def public_names(file: Path) -> list[str]:
    for node in TREES[file].body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def test_no_module_is_named_like_a_public_name_of_its_room():
    for init in (file for file in SOURCES if file.name == "__init__.py"):
        siblings = {
            path.stem for path in init.parent.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
        }
        modules_offered = {
            alias.asname or alias.name
            for node in ast.walk(TREES[init])
            if isinstance(node, ast.ImportFrom) and node.module == "geoeco." + init.parent.name
            for alias in node.names
        }
        assert not (siblings & set(public_names(init))) - modules_offered, init


def test_every_room_says_what_it_offers():
    for init in (file for file in SOURCES if file.name == "__init__.py" and file.read_text().strip()):
        assert ast.get_docstring(TREES[init]), init
        assert public_names(init), init


def public_functions() -> list[tuple[Path, str, ast.FunctionDef]]:
    """Public functions of the package's modules, and the public methods of their public classes."""
    found = []
    for file, tree in TREES.items():
        if any(part.startswith("_") and part != "__init__.py" for part in file.relative_to(ROOT).parts):
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found.append((file, node.name, node))
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found += [
                    (file, f"{node.name}.{part.name}", part)
                    for part in node.body
                    if isinstance(part, ast.FunctionDef) and not part.name.startswith("_")
                ]
    return found


def test_every_public_function_has_a_docstring():
    bare = [
        f"{place(file, node)} {name}"
        for file, name, node in public_functions()
        if not ast.get_docstring(node) and not any("overload" in ast.unparse(d) for d in node.decorator_list)
    ]
    assert not bare


def test_what_a_room_offers_documents_its_parameters():
    """Each parameter is named in the docstring, or the docstring points to the function that documents it."""
    offered = {(init.parent, name) for init in SOURCES if init.name == "__init__.py" for name in public_names(init)}
    silent = []
    for file, name, node in public_functions():
        if (file.parent, name) not in offered or any("overload" in ast.unparse(d) for d in node.decorator_list):
            continue
        text = ast.get_docstring(node) or ""
        arguments = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
        missing = [a for a in arguments if not re.search(rf"(?<![\w.]){re.escape(a)}(?!\w)", text)]
        brief = len(arguments) <= 2 and "\n" not in text
        if len(arguments) > 1 and missing and not brief and not re.search(r"\bas (in|of|for) `", text):
            silent.append(f"{place(file, node)} {name}: {', '.join(missing)}")
    assert not silent


#: Written in parts, so that this file does not hold them.
FOREIGN = [
    r"(?<![\w.:])/" + "work/",
    r"(?<![\w.:])/" + "root/",
    "/" + "opt/pypi",
    "index" + "-url",
    "find" + "-links",
    "before" + "-stop",
]


def test_no_file_knows_the_machine_it_was_written_on():
    found = []
    for file in tracked():
        try:
            text = file.read_text()
        except UnicodeDecodeError:
            continue
        found += [f"{file.relative_to(ROOT)}: {match[0]}" for word in FOREIGN for match in re.finditer(word, text)]
        if "shared" + "/data" in text and file.relative_to(ROOT) != Path(".ci/run"):
            found.append(f"{file.relative_to(ROOT)}: the folder of the sample data is named in .ci/run only")
    assert not found


def test_no_file_is_large():
    large = {str(file.relative_to(ROOT)): file.stat().st_size for file in tracked() if file.stat().st_size > 1_000_000}
    assert not large
