"""README.md stays true: what it names exists, and its map holds each folder of sources."""

import posixpath
import re

from source_tree import LAYERS, Breach, layer_of

_TOP_FOLDERS = LAYERS + ("tests", "deploy", "cmake", ".ci")
_CODE = re.compile(r"`([^`\n]+)`")
_PATH = re.compile(r"^(?:\./)?([\w.-]+(?:/[\w.+-]+)*/?)$")
_FUNCTION = re.compile(r"^(?:[\w:]+(?:::|\.))?(\w+)\(\)$")

# `Class::Function()` (`path/of/its.h`), in the life of a request.
_PLACE = re.compile(r"`([\w:]+)\(\)` \(`([\w./]+)`\)")


def check(tree):
    if not tree.exists("README.md"):
        return [Breach("README.md", 1, "there is no README.md", "README.md")]
    return _names(tree) + _life_of_a_request(tree) + _map(tree)


def _names(tree):
    breaches = []
    sources = "\n".join(tree.code(path) for path in tree.cpp_sources())
    for number, line in tree.lines("README.md"):
        for name in _CODE.findall(line):
            path, function = _PATH.match(name), _FUNCTION.match(name)
            if path and layer_of(path.group(1)) in _TOP_FOLDERS and "/" in name:
                if not tree.exists(path.group(1)):
                    breaches.append(Breach("README.md", number, f"there is no {name}", name))
            elif function and not re.search(rf"\b{function.group(1)}\s*\(", sources):
                breaches.append(Breach("README.md", number, f"no source has {name}", name))
    return breaches


def _section(tree, title):
    """(number of its heading, its text), or None."""
    match = re.search(
        rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", tree.text("README.md"), re.S | re.M
    )
    return match and (tree.text("README.md").count("\n", 0, match.start()) + 1, match.group(1))


def _life_of_a_request(tree):
    section = _section(tree, "Life of a request")
    if not section:
        return [Breach("README.md", 1, 'there is no section "Life of a request"', "README.md")]
    number, text = section
    breaches = []
    for step in re.split(r"^(?=\d+\. )", text, flags=re.M)[1:]:
        label = step.split(".", 1)[0]
        places = _PLACE.findall(" ".join(step.split()))
        if not places:
            message = f"step {label} of the life of a request names no `Function()` (`path`)"
            breaches.append(Breach("README.md", number, message, label))
        for function, path in places:
            called = rf"\b{re.escape(function.rsplit('::', 1)[-1])}\s*\("
            if not tree.exists(path) or not re.search(called, tree.code(path)):
                message = f"there is no {function}() in {path}"
                breaches.append(Breach("README.md", number, message, function))
    return breaches


def _map(tree):
    section = _section(tree, "Map of the folders")
    if not section:
        return [Breach("README.md", 1, 'there is no section "Map of the folders"', "README.md")]
    number, text = section
    named = {name.rstrip("/") for name in _CODE.findall(text)}
    folders = {
        posixpath.dirname(path)
        for path in tree.files
        if layer_of(path) in LAYERS and path.endswith("/CMakeLists.txt")
    }
    return [
        Breach("README.md", number, f"the map lacks `{folder}`", folder)
        for folder in sorted(folders - named)
    ]
