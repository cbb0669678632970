"""Header guards: KVIST_PATH_TO_FILE_H_, opened, defined and named at the end."""

import re

from source_tree import Breach


def guard_of(path):
    return "KVIST_" + re.sub(r"[^A-Z0-9]", "_", path.upper()) + "_"


def check(tree):
    breaches = []
    for path in tree.with_suffix(".h", ".cuh"):
        guard = guard_of(path)
        directives = [(number, line) for number, line in tree.lines(path) if line.startswith("#")]
        wanted = [f"#ifndef {guard}", f"#define {guard}"]
        if [line.rstrip() for _, line in directives[:2]] != wanted:
            number = directives[0][0] if directives else 1
            breaches.append(Breach(path, number, f"the header guard should be {guard}", path))
        elif directives[-1][1] != f"#endif  // {guard}":
            breaches.append(
                Breach(
                    path, directives[-1][0], f'the last line should be "#endif  // {guard}"', path
                )
            )
    return breaches
