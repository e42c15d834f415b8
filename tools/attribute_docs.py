"""What the fields and members of a class mean: the string that stands after each (PEP 257), read from the source.

Python itself drops these strings, so that they cost nothing when the program runs.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap


@functools.cache
def attribute_docs(owner: type) -> dict[str, str]:
    """Those that have such a string, in their order, with what it says as one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, after in itertools.pairwise(definition.body):
        match statement, after:
            case (
                ast.AnnAssign(target=ast.Name(name)) | ast.Assign(targets=[ast.Name(name)]),
                ast.Expr(ast.Constant(str(text))),
            ):
                found[name] = " ".join(text.split())
    return found
