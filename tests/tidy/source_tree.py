"""The files of the project as the checks see them: names, texts, and C++ without comments."""

import dataclasses
import functools
import os
import pathlib
import re

# Folders of sources in their order: each may include itself and those to its left.
LAYERS = ("proto", "common", "cache_manager", "worker", "services")
PURE_LAYERS = ("common", "cache_manager", "worker")
CPP = (".cc", ".h", ".cu", ".cuh")


@dataclasses.dataclass(frozen=True, order=True)
class Breach:
    """One place that a check found wrong. An exception names `name`: path, or path:function."""

    path: str
    line: int
    message: str
    name: str = ""

    def __str__(self):
        return f"{self.path}:{self.line}: {self.message}"


class SourceTree:
    """Reads the files below `root`, but for build folders and names with a dot (save .ci)."""

    def __init__(self, root):
        self.root = pathlib.Path(root)

    @functools.cached_property
    def files(self):
        """All paths, sorted, with / between folders."""
        found = []
        for folder, subfolders, names in os.walk(self.root):
            relative = pathlib.Path(folder).relative_to(self.root)
            top = relative == pathlib.Path(".")
            subfolders[:] = [
                name
                for name in subfolders
                if (name == ".ci" or not name.startswith("."))
                and name != "__pycache__"
                and not (top and name.startswith("build"))
            ]
            found += [(relative / name).as_posix() for name in names]
        return sorted(found)

    def with_suffix(self, *suffixes):
        return [path for path in self.files if path.endswith(suffixes)]

    def cpp(self):
        return self.with_suffix(*CPP)

    def cpp_sources(self):
        """C++ files of the product: not those of the tests."""
        return [path for path in self.cpp() if layer_of(path) in LAYERS]

    def exists(self, path):
        return (self.root / path).exists()

    @functools.cache
    def text(self, path):
        return (self.root / path).read_text(encoding="utf-8", errors="replace")

    def lines(self, path):
        """(number, line) pairs, from 1."""
        return list(enumerate(self.text(path).splitlines(), 1))

    @functools.cache
    def code(self, path):
        """C++ text with comments and the insides of literals blanked; lines stay where they are."""
        return blank_comments_and_literals(self.text(path))


def layer_of(path):
    return path.split("/", 1)[0]


_TOKEN = re.compile(
    r"""(?P<raw>R"(?P<delimiter>[^\s()\\]{0,16})\(.*?\)(?P=delimiter)")"""
    r"""|(?P<line>//[^\n]*)|(?P<block>/\*.*?\*/)"""
    r"""|(?P<string>"(?:\\.|[^"\\\n])*")"""
    # A quote between digits separates them: 200'000.
    r"""|(?P<number>\b[0-9][0-9a-fA-FxXbB]*(?:'[0-9a-fA-F]+)+)"""
    r"""|(?P<char>'(?:\\.|[^'\\\n])+')""",
    re.DOTALL | re.VERBOSE,
)


def blank_comments_and_literals(text):
    def blank(match):
        whole = match.group(0)
        if match.lastgroup == "number":
            return whole
        kept = re.sub(r"[^\n]", " ", whole)
        if match.group("string") or match.group("char"):
            return whole[0] + kept[1:-1] + whole[-1]
        return kept

    return _TOKEN.sub(blank, text)


def line_of(text, offset):
    return text.count("\n", 0, offset) + 1
