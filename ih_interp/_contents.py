"""The list of a folder's public functions in its docstring, made of their own docstrings."""

import ast
from pathlib import Path


def with_contents(doc: str | None, init_file: str) -> str:
    """Return a folder's docstring and, module by module, the names in its stub, a sentence each.

    Nothing is imported: the sentences are read from the source.
    """
    lines = [doc or ""]
    stub = ast.parse(Path(init_file).with_suffix(".pyi").read_text())
    for part in (node for node in stub.body if isinstance(node, ast.ImportFrom)):
        first: dict[str, str] = {}
        for node in ast.parse(Path(init_file).with_name(f"{part.module}.py").read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                first[node.name] = (ast.get_docstring(node) or "").partition("\n")[0]
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
                first[ast.unparse(node.targets[0])] = first.get(node.value.id, "")
        lines.append(str(part.module).strip("_").replace("_", " ").capitalize())
        lines += [f"    {name.name}: {first[name.name]}" for name in part.names]
    return "\n".join(lines)
