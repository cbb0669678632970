"""A class of a header says what it is, and if it holds state, from which threads it may be used."""

import re

from source_tree import Breach, layer_of, LAYERS

_CLASS = re.compile(r"^class\s+(?:[A-Z_]+(?:\([^)]*\))?\s+)*(?:\[\[\w+\]\]\s+)?(\w+)[^;]*$")
_THREADS = re.compile(r"\b(?:thread-safe|thread-compatible|single-threaded)\b", re.IGNORECASE)
_MEMBER = re.compile(
    r"^\s+[\w:<>,&*\s\[\]()]+\b\w+_(?:\s+[A-Z_]+\([^)]*\))?\s*(?:=[^;]*|\{[^;]*\})?;", re.M
)


def check(tree):
    breaches = []
    for path in tree.with_suffix(".h", ".cuh"):
        if layer_of(path) not in LAYERS:
            continue
        lines = [line for _, line in tree.lines(path)]
        code = tree.code(path).splitlines()
        for index, line in enumerate(code):
            match = _CLASS.match(line)
            if match and "{" in "".join(code[index : index + 4]).split(";")[0]:
                breaches += _of_class(path, lines, code, index, match.group(1))
    return breaches


def _of_class(path, lines, code, index, name):
    comment = _comment_above(lines, index)
    if not comment:
        return [Breach(path, index + 1, f"class {name} has no comment", f"{path}:{name}")]
    if _MEMBER.search(_body(code, index)) and not _THREADS.search(comment):
        message = (
            f"class {name} holds state: its comment should say"
            " Thread-safe, Thread-compatible or Single-threaded"
        )
        return [Breach(path, index + 1, message, f"{path}:{name}")]
    return []


def _comment_above(lines, index):
    """The // lines right above, past a template head or attributes."""
    index -= 1
    while index >= 0 and re.match(r"(template\b|requires\b|\[\[|alignas|\s+\S.*>$)", lines[index]):
        index -= 1
    comment = []
    while index >= 0 and lines[index].startswith("//"):
        comment.insert(0, lines[index])
        index -= 1
    return "\n".join(comment)


def _body(code, index):
    """The text from the class to the line that closes it at the margin."""
    end = next((i for i in range(index, len(code)) if code[i].startswith("}")), len(code))
    return "\n".join(code[index:end])
