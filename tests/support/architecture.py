"""The house rules that can be read off the source: floors, homes, cycles, docstrings, sizes."""

import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds in a source tree.

    Attributes:
        floors: the rooms of each floor, lowest first. A room is a package or module with all below it,
            or without, where something below it is a room too. A module imports from its own room and from
            lower floors; the rooms of the top floor share it.
        inner: for a room, its floors inside, lowest first; here the rooms of each floor share it.
        homes: for an outside module, with all that is below it, the rooms that may import it. The standard
            library needs no home, others do.
        environment: the rooms that may read environment variables.
        max_lines: of any file.
    """

    floors: Sequence[Sequence[str]]
    inner: Mapping[str, Sequence[Sequence[str]]]
    homes: Mapping[str, Sequence[str]]
    environment: Sequence[str]
    max_lines: int


@dataclass(frozen=True, slots=True)
class Module:
    """One source file of the tree.

    Attributes:
        name: dotted; a package has the name of its folder.
        is_package: this is an `__init__.py`.
        tree: parsed source.
        lines: how many it has.
    """

    name: str
    is_package: bool
    tree: ast.Module
    lines: int


def read_modules(root: Path, packages: Sequence[str]) -> dict[str, Module]:
    """All modules of the given top-level packages below `root`, by name; absent packages have none."""
    modules = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if is_package else parts)
            source = path.read_text()
            modules[name] = Module(name, is_package, ast.parse(source), source.count("\n"))
    return modules


def violations(modules: Mapping[str, Module], rules: Rules) -> list[str]:
    """What breaks the rules, a line each."""
    found: list[str] = []
    for module in modules.values():
        found += _plain(module, rules)
        for imported in sorted(set(imports(module, modules))):
            problem = _import_problem(module.name, imported, rules)
            if problem:
                found.append(f"{module.name} imports {imported}: {problem}")
    return found + cycles(modules)


def plain_violations(modules: Mapping[str, Module], max_lines: int) -> list[str]:
    """What breaks the rules that any file has to keep: it says what it is for, and it is not too long."""
    return [line for module in modules.values() for line in _plain_file(module, max_lines)]


def imports(module: Module, known: Mapping[str, Module]) -> Iterator[str]:
    """The modules a module imports, wherever in its source; a name in a package counts as the package."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _import_source(module, node)
            for alias in node.names:
                whole = f"{source}.{alias.name}"
                yield whole if whole in known else source


def cycles(modules: Mapping[str, Module]) -> list[str]:
    """The first cycle among the modules, as one line; none is best."""
    graph = {
        name: {imported for imported in imports(module, modules) if imported in modules and imported != name}
        for name, module in modules.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        ring = error.args[1][:0:-1]
        first = ring.index(min(ring))
        return ["a cycle: " + " -> ".join([*ring[first:], *ring[:first], ring[first]])]
    return []


def _import_source(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.name.split(".")
    base = parts[: len(parts) - node.level + module.is_package]
    return ".".join([*base, node.module] if node.module else base)


def _plain(module: Module, rules: Rules) -> Iterator[str]:
    yield from _plain_file(module, rules.max_lines)
    if not _stands(module.name, rules):
        yield f"{module.name}: stands on no floor"
    if _reads_environment(module) and not _inside_any(module.name, rules.environment):
        yield f"{module.name}: reads the environment"


def _plain_file(module: Module, max_lines: int) -> Iterator[str]:
    if not ast.get_docstring(module.tree):
        yield f"{module.name}: has no docstring"
    if module.lines > max_lines:
        yield f"{module.name}: has {module.lines} lines, more than {max_lines}"


def _reads_environment(module: Module) -> bool:
    wanted = {"environ", "environb", "getenv", "getenvb"}
    return any(
        (isinstance(node, ast.Attribute) and node.attr in wanted and ast.unparse(node.value) == "os")
        or (
            isinstance(node, ast.ImportFrom) and node.module == "os" and wanted & {a.name for a in node.names}
        )
        for node in ast.walk(module.tree)
    )


def _import_problem(importer: str, imported: str, rules: Rules) -> str | None:
    target = _floor(imported, rules.floors)
    if target is None:
        return _home_problem(importer, imported, rules)
    own = _floor(importer, rules.floors)
    if own is None:
        return None
    if own[1] == target[1]:
        return _inner_problem(importer, imported, rules.inner.get(own[1], ()))
    top = len(rules.floors) - 1
    if target[0] > own[0]:
        return f"{target[1]} is above {own[1]}"
    if target[0] == own[0] != top:
        return f"{target[1]} is beside {own[1]}"
    return None


def _inner_problem(importer: str, imported: str, floors: Sequence[Sequence[str]]) -> str | None:
    own, target = _floor(importer, floors), _floor(imported, floors)
    if own is not None and target is not None and target[0] > own[0]:
        return f"{target[1]} is above {own[1]}"
    return None


def _home_problem(importer: str, imported: str, rules: Rules) -> str | None:
    homes = [rooms for library, rooms in rules.homes.items() if _inside(imported, library)]
    if any(not _inside_any(importer, rooms) for rooms in homes):
        return "its home is " + (" or ".join(homes[0]) or "nowhere")
    if not homes and imported.partition(".")[0] not in sys.stdlib_module_names:
        return "it has no home"
    return None


def _stands(module: str, rules: Rules) -> bool:
    own = _floor(module, rules.floors)
    if own is None:
        return False
    inner = rules.inner.get(own[1])
    return inner is None or module == own[1] or _floor(module, inner) is not None


def _floor(module: str, floors: Sequence[Sequence[str]]) -> tuple[int, str] | None:
    """The floor and the room of a module of the tree."""
    rooms = [(level, room) for level, floor in enumerate(floors) for room in floor]
    for level, room in rooms:
        has_rooms_below = any(other != room and _inside(other, room) for _, other in rooms)
        if module == room or (_inside(module, room) and not has_rooms_below):
            return level, room
    return None


def _inside(module: str, room: str) -> bool:
    return module == room or module.startswith(room + ".")


def _inside_any(module: str, rooms: Sequence[str]) -> bool:
    return any(_inside(module, room) for room in rooms)
