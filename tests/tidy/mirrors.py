"""tests/ mirrors the sources: sources have tests at the same path, and tests sources."""

import posixpath

from source_tree import LAYERS, Breach, layer_of

# Folders of tests/ that are about the whole and mirror nothing.
_OF_THE_WHOLE = {"integration", "simulation", "golden", "fuzz", "bench", "tidy", "support"}


def check(tree):
    breaches = []
    tests = tree.with_suffix("_test.cc", "_test.py")
    tested = {posixpath.dirname(path) for path in tests}
    sources = {
        posixpath.dirname(path) for path in tree.with_suffix(".cc") if layer_of(path) in LAYERS
    }
    for folder in sorted(sources):
        # worker/kernels/cpu may be tested where worker/kernels is.
        ancestors = _with_ancestors(folder)
        if not any(f"tests/{ancestor}" in tested for ancestor in ancestors):
            breaches.append(Breach(folder, 1, f"no test stands in tests/{folder}", folder))
    for path in tests:
        folder = posixpath.dirname(path).removeprefix("tests").lstrip("/")
        if not path.startswith("tests/"):
            breaches.append(Breach(path, 1, "tests stand below tests/", path))
        elif layer_of(folder) not in _OF_THE_WHOLE and not tree.exists(folder or "."):
            breaches.append(
                Breach(path, 1, f"there is no folder {folder} that this could test", path)
            )
    return breaches


def _with_ancestors(folder):
    parts = folder.split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
