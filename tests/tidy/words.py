"""Words that say that something is unfinished or ends the process, and names that say nothing."""

import re

from source_tree import LAYERS, Breach, layer_of

# Written in two halves, so that this file does not hold them.
_UNFINISHED = re.compile(
    "|".join(
        [
            r"\bTO" r"DO\b",
            r"\bFIX" r"ME\b",
            r"\bXX" r"X\b",
            r"#\s*if\s+0" r"\b",
            r"\bDISABLED" r"_",
            r"\bnot " r"implemented\b",
        ]
    )
)
_CHECKED = (".cc", ".h", ".cu", ".cuh", ".py", ".sh", ".proto", ".cmake", "CMakeLists.txt")
_NAMELESS = {"utils", "util", "helpers", "helper", "misc"}
_ENDS_PROCESS = re.compile(
    r"\bthrow\b|(?<![\w.>])(?:std::|::)?(?:exit|_exit|quick_exit|abort)\s*\("
)
_SLEEPS = re.compile(r"\b(?:sleep_for|sleep_until|usleep|nanosleep|SleepFor)\s*\(")


def check(tree):
    breaches = []
    for path in tree.files:
        stems = re.split(r"[/_.]", path)
        if _NAMELESS & set(stems):
            breaches.append(Breach(path, 1, "a name that says nothing about what is inside", path))
        if path.endswith(_CHECKED):
            for number, line in tree.lines(path):
                if _UNFINISHED.search(line):
                    breaches.append(Breach(path, number, f"unfinished: {line.strip()}", path))
    for path in tree.cpp():
        breaches += _forbidden_calls(tree, path)
    return breaches


def _forbidden_calls(tree, path):
    if layer_of(path) in LAYERS:
        pattern, message = (
            _ENDS_PROCESS,
            "no throw, exit or abort: expected failures are absl::Status",
        )
    else:
        pattern, message = _SLEEPS, "no sleeps in tests: step a fake clock or wait for the event"
    return [
        Breach(path, number, message, path)
        for number, line in enumerate(tree.code(path).splitlines(), 1)
        if pattern.search(line)
    ]
