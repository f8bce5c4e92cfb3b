"""Who imports whom, over every import of the package: what docs/architecture.md promises, in one table."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import PROJECT

PACKAGE = PROJECT / "dolly_batch"


@dataclass(frozen=True)
class Import:
    """One import statement. `is_lazy`: inside of a function, or for type checkers alone."""

    module: str
    imported: str
    is_lazy: bool


# Layer -> the layers that it may import, in addition to itself. A layer is a folder of the package or a root module.
LAYERS: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "logs": set(),
    "prompt_format": set(),
    "tokenizer": {"errors"},
    "prompt": {"errors", "prompt_format", "tokenizer"},
    "system": {"errors", "records"},
    "cascade": {"errors"},
    "models": {"errors", "prompt_format"},
    "tiny": set(),
    "tasks": {"errors", "records", "prompt", "cascade"},
    "engine": {"errors", "records", "prompt", "tokenizer", "models", "system"},
    "host": {"errors", "records", "prompt", "tokenizer", "system", "engine", ""},
    "staging": {"errors", "prompt", "prompt_format", "tokenizer", "models", "engine", "system", "tiny", ""},
    "config": {"errors", "records", "tasks"},
    "report": {"records", "page"},
    "page": {"records", "report"},
    "console": {"records", "report", "evaluate"},
    "spark": {
        *("errors", "records", "prompt", "models", "engine", "system", "tasks", "host", "staging", "cascade"),
        *("config", "report", "page", "console", ""),
    },
    "evaluate": {
        *("errors", "records", "models", "host", "config", "report", "console", "spark", ""),
    },
    "functions": {"errors", "models", "tasks", "config", "console", "report", "spark"},
    "cli": {"errors", "config", "report", "page", "console", "logs", "spark", "evaluate", "staging", ""},
    "command": {"cli", "errors"},
    "": {"errors", "config", "report", "spark", "evaluate"},
}
# What a layer may take from outside of the standard library.
SPARK = {"pyspark", "py4j", "pandas", "pyarrow", "delta"}
LIBRARIES: dict[str, set[str]] = {
    "prompt": {"tokenizers"},
    "tokenizer": {"tokenizers"},
    "engine": {
        "torch",
        "transformers",
        "llguidance",
        "numba",
        "llvmlite",
        "numpy",
        "triton",
        "safetensors",
        "accelerate",
    },
    "staging": {"huggingface_hub", "modelscope", "torch", "transformers", "tokenizers", "safetensors"},
    "cascade": {"numpy", "scipy", "sklearn", "threadpoolctl"},
    "config": {"pydantic", "yaml"},
    "console": {"rich"},
    "spark": {*SPARK, "mlflow", "openlineage"},
    "evaluate": {*SPARK, "pydantic", "rouge_score"},
    "functions": SPARK,
    "cli": {"pyspark"},
    "logs": {"pyspark"},
}
# What crosses to executors: their Python need not hold pydantic, yaml, rich, torch or transformers.
ON_EXECUTORS = {
    "dolly_batch.spark.generate.shard",
    "dolly_batch.spark.generate.sql_call",
    "dolly_batch.spark.plan.token_counts",
}
NOT_ON_EXECUTORS = {"pydantic", "yaml", "rich", "torch", "transformers"}


def imports() -> list[Import]:
    return [found for path in sorted(PACKAGE.rglob("*.py")) for found in _imports_of(path)]


def _imports_of(path: Path) -> Iterator[Import]:
    name = ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")

    def visit(node: ast.AST, is_lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            lazy = is_lazy or isinstance(child, ast.FunctionDef) or _is_type_checking(child)
            if isinstance(child, ast.Import):
                yield from (Import(name, alias.name, lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{name}: imports are absolute"
                for alias in child.names:
                    module = f"{child.module}.{alias.name}"
                    yield Import(name, module if _is_module(module) else str(child.module), lazy)
            else:
                yield from visit(child, lazy)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), is_lazy=False)


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_module(name: str) -> bool:
    path = PROJECT.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def layer(module: str) -> str:
    """The folder or root module below the package; "" for the package itself."""
    return module.partition(".")[2].partition(".")[0]


def test_every_import_goes_the_way_the_table_says() -> None:
    wrong = {
        f"{found.module} imports {found.imported}"
        for found in imports()
        if found.imported.startswith("dolly_batch")
        and layer(found.imported) not in {layer(found.module), *LAYERS[layer(found.module)]}
    }
    assert not wrong


def test_a_layer_takes_only_its_libraries() -> None:
    wrong = set()
    for found in imports():
        library = found.imported.partition(".")[0]
        allowed = {"dolly_batch", *sys.stdlib_module_names, *LIBRARIES.get(layer(found.module), set())}
        if library not in allowed:
            wrong.add(f"{found.module} imports {library}")
    assert not wrong


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph: dict[str, set[str]] = {}
    for found in imports():
        if found.imported.startswith("dolly_batch.") and not found.is_lazy:
            graph.setdefault(found.module, set()).add(found.imported)
    circles = {module for module in graph if module in _reached(graph, module)}
    assert not circles


def test_what_crosses_to_executors_reaches_nothing_that_they_lack() -> None:
    graph: dict[str, set[str]] = {}
    for found in imports():
        if not found.is_lazy:
            graph.setdefault(found.module, set()).add(found.imported)
            # Importing a module imports its packages first.
            parts = found.imported.split(".")
            graph[found.module] |= {".".join(parts[:n]) for n in range(1, len(parts))}
    for module in ON_EXECUTORS:
        reached = {name.partition(".")[0] for name in _reached(graph, module)}
        assert not reached & NOT_ON_EXECUTORS, module


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    reached: set[str] = set()
    waiting = [start]
    while waiting:
        for name in graph.get(waiting.pop(), set()) - reached:
            reached.add(name)
            waiting.append(name)
    return reached
