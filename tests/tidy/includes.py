"""Order of the folders (proto < common < cache_manager < worker < services) and what the pure
ones may not include."""

import re

from source_tree import LAYERS, PURE_LAYERS, Breach, layer_of

_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
_IMPURE = re.compile(r"^(grpc|grpcpp|google/protobuf|prometheus)/|\.pb\.h$|^proto/")
# cache_manager is also free of threads and of clocks: time comes in as an argument.
_THREADS_AND_CLOCKS = {
    "thread",
    "mutex",
    "shared_mutex",
    "condition_variable",
    "future",
    "semaphore",
    "latch",
    "barrier",
    "common/base/mutex.h",
}


def check(tree):
    breaches = []
    for path in tree.cpp():
        for number, line in tree.lines(path):
            match = _INCLUDE.match(line)
            if match:
                message = _wrong(tree, path, match.group(2), quoted=match.group(1) == '"')
                if message:
                    breaches.append(Breach(path, number, message, path))
    return breaches


def _wrong(tree, path, included, quoted):
    own, other = layer_of(path), layer_of(included)
    if own in LAYERS:
        if other in LAYERS and LAYERS.index(other) > LAYERS.index(own):
            return f"{own} includes {included}: {other} stands to its right ({' < '.join(LAYERS)})"
        if other in ("tests", "deploy"):
            return f"a source of the product includes {included}"
    if own in PURE_LAYERS and _IMPURE.search(included):
        return f"{own} is pure and includes {included}"
    if own == "cache_manager" and included in _THREADS_AND_CLOCKS:
        return f"cache_manager has no threads and includes {included}"
    if quoted and other in LAYERS + ("tests",):
        if not included.endswith(".pb.h") and not tree.exists(included):
            return f"there is no {included}"
    elif quoted and "/" not in included:
        return f'"{included}" is not named from the root of the project'
    return None
