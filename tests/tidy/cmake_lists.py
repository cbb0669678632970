"""CMake names each source: no globbing, and what is listed is what is there.

Headers that only tests use may go unlisted."""

import posixpath
import re

from source_tree import Breach

_SOURCE = re.compile(r"(?<![\w$}/.-])[\w][\w/.+-]*\.(?:cc|h|cu|cuh|proto)\b(?![\w.])")


def check(tree):
    breaches = []
    listed = set()
    for path in tree.files:
        if not path.endswith((".cmake", "CMakeLists.txt")):
            continue
        folder = posixpath.dirname(path)
        for number, line in tree.lines(path):
            code = line.split("#", 1)[0]
            if re.search(r"\bGLOB(_RECURSE)?\b", code):
                breaches.append(Breach(path, number, "sources are written out, not globbed", path))
            for name in _SOURCE.findall(code):
                source = posixpath.normpath(posixpath.join(folder, name))
                if tree.exists(source):
                    listed.add(source)
                elif tree.exists(name):  # named from the root, as the .proto files may be
                    listed.add(name)
                elif not name.endswith((".pb.h", ".pb.cc")):
                    breaches.append(Breach(path, number, f"there is no {source}", source))
    for source in tree.with_suffix(".cc", ".h", ".cu", ".cuh", ".proto"):
        if source.startswith("tests/") and source.endswith((".h", ".cuh")):
            continue
        if source not in listed and not _is_listed_proto(tree, source):
            breaches.append(Breach(source, 1, "no CMakeLists.txt lists this file", source))
    return breaches


def _is_listed_proto(tree, source):
    """Whether proto/CMakeLists.txt names the .proto file, without its suffix, for the generator."""
    stem, suffix = posixpath.splitext(posixpath.basename(source))
    lists = "proto/CMakeLists.txt"
    return (
        suffix == ".proto"
        and tree.exists(lists)
        and re.search(rf"\b{re.escape(stem)}\b", tree.text(lists)) is not None
    )
