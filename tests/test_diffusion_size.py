"""The core stays one that can be read in an afternoon."""

import ast
import io
import tokenize
from pathlib import Path

import neurodiff.diffusion

SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def code_lines(text: str) -> int:
    """Lines that hold code: blank lines, comments and docstrings apart."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in SILENT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_what_counts_as_code():
    text = '"""One.\n\nTwo."""\n\n# why\nx = (\n    1,\n)\n\n\n'
    text += 'def f():\n    """Doc."""\n    return x  # y\n'
    assert code_lines(text) == 5


def test_the_core_has_at_most_900_lines_of_code():
    folder = Path(neurodiff.diffusion.__file__).parent
    counts = {p.name: code_lines(p.read_text(encoding="utf-8")) for p in folder.glob("*.py")}
    assert len(counts) > 10
    assert sum(counts.values()) <= 900, counts


def test_each_step_fits_on_a_screen():
    """A solver is its class: equation, source and step within 40 lines, docstring included."""
    path = Path(neurodiff.diffusion.__file__).parent / "solvers.py"
    classes = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
    lengths = {n.name: n.end_lineno - n.lineno + 1 for n in classes}
    assert {"DDIM", "Ancestral", "EDMStep", "DPMSolver2M"} <= set(lengths)
    assert max(lengths.values()) <= 40, lengths
