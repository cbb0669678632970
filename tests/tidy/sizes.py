"""Sizes that a reader can take in: functions, files, columns."""

import ast
import re

from source_tree import Breach, line_of

MAX_FUNCTION_LINES = 70
MAX_SOURCE_LINES = 500
MAX_HEADER_LINES = 300
MAX_COLUMNS = 100

_COLUMN_SUFFIXES = (".cc", ".h", ".cu", ".cuh", ".proto", ".py", ".sh", ".cmake", "CMakeLists.txt")
_KEYWORDS = re.compile(r"\b(?:namespace|extern)\b")
_TYPES = re.compile(r"\b(?:class|struct|union|enum)\b[^()]*$")
_PREPROCESSOR = re.compile(r"^[ \t]*#(?:[^\n\\]|\\\n|\\.)*", re.MULTILINE)


def check(tree):
    breaches = []
    for path in tree.files:
        if path.endswith(_COLUMN_SUFFIXES):
            breaches += _columns(tree, path)
    for path in tree.with_suffix(".cc", ".h", ".cu", ".cuh"):
        breaches += _file_length(tree, path)
        for name, start, end in functions(tree.code(path)):
            breaches += _function_length(path, name, start, end)
    for path in tree.with_suffix(".py"):
        breaches += _python_functions(tree, path)
    return breaches


def _python_functions(tree, path):
    try:
        nodes = list(ast.walk(ast.parse(tree.text(path))))
    except SyntaxError as error:
        return [Breach(path, error.lineno or 1, f"does not parse: {error.msg}", path)]
    breaches = []
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            breaches += _function_length(path, node.name, node.lineno, node.end_lineno)
    return breaches


def _columns(tree, path):
    return [
        Breach(path, number, f"{len(line)} columns, over {MAX_COLUMNS}", path)
        for number, line in tree.lines(path)
        if len(line) > MAX_COLUMNS
    ]


def _file_length(tree, path):
    limit = MAX_HEADER_LINES if path.endswith((".h", ".cuh")) else MAX_SOURCE_LINES
    count = len(tree.lines(path))
    return [Breach(path, count, f"{count} lines, over {limit}", path)] if count > limit else []


def _function_length(path, name, start, end):
    length = end - start + 1
    if length <= MAX_FUNCTION_LINES:
        return []
    message = f"function {name} has {length} lines, over {MAX_FUNCTION_LINES}"
    return [Breach(path, start, message, f"{path}:{name}")]


def functions(code):
    """(name, first line, last line) of each function definition, found by matching braces.

    `code` has its comments and literals blanked. A heuristic: it reads the text before an opening
    brace, not the grammar.
    """
    code = _PREPROCESSOR.sub(lambda match: re.sub(r"[^\n]", " ", match.group(0)), code)
    found = []
    stack = []  # (kind, offset of the head, offset where the head began to be read again)
    head_start = 0
    for match in re.finditer(r"[{};]", code):
        offset, brace = match.start(), match.group(0)
        inside_function = any(kind == "function" for kind, _ in stack)
        if brace == ";":
            head_start = head_start if inside_function else offset + 1
        elif brace == "{":
            stack.append(
                ("block" if inside_function else _kind(code[head_start:offset]), head_start)
            )
            if stack[-1][0] in ("namespace", "type"):
                head_start = offset + 1
        elif stack:
            kind, start = stack.pop()
            if kind == "block":
                continue
            following = code[offset + 1 :].lstrip()[:1]
            if kind in ("function", "initialiser") and following in (",", "{"):
                head_start = (
                    start  # a member initialiser in braces: the function's body is still to come
                )
                continue
            if kind == "function":
                head = code[start:offset]
                first = start + len(head) - len(head.lstrip())
                found.append((_name(head), line_of(code, first), line_of(code, offset)))
            head_start = offset + 1
    return found


def _kind(head):
    if _KEYWORDS.search(head) and "(" not in head:
        return "namespace"
    if _TYPES.search(head):
        return "type"
    return "function" if ")" in head else "initialiser"


def _name(head):
    match = re.search(r"([\w:~]+|operator[^\w\s(]+)\s*\(([^,()]*)", head)
    if not match:
        return "?"
    # TEST(Suite, Case) is named by both.
    if match.group(1).startswith(("TEST", "TYPED_TEST")):
        inside = re.search(r"\(([^)]*)\)", head[match.start() :])
        return re.sub(r"\s*,\s*", ".", inside.group(1).strip()) if inside else match.group(1)
    return match.group(1)
