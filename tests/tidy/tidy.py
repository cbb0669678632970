#!/usr/bin/env python3
"""Checks the habits of the project that a program can check.

    tidy.py [CHECK...]     all checks if none is named; --root DIR looks at another tree

Prints one line per breach and ends with status 1 if there is one. What is let pass
stands in exceptions.txt, by name and with a reason.
"""

import argparse
import pathlib
import sys

import class_comments
import cmake_lists
import guards
import includes
import mirrors
import protos
import readme
import scripts
import sizes
import words
from source_tree import Breach, SourceTree

CHECKS = {
    "includes": includes.check,
    "cmake_lists": cmake_lists.check,
    "guards": guards.check,
    "sizes": sizes.check,
    "words": words.check,
    "mirrors": mirrors.check,
    "readme": readme.check,
    "protos": protos.check,
    "class_comments": class_comments.check,
    "scripts": scripts.check,
}
EXCEPTIONS = "tests/tidy/exceptions.txt"


def exceptions(tree):
    """{check: {name: line of exceptions.txt}}; a line without a reason raises ValueError."""
    found = {check: {} for check in CHECKS}
    if not tree.exists(EXCEPTIONS):
        return found
    for number, line in tree.lines(EXCEPTIONS):
        if not line.strip() or line.startswith("#"):
            continue
        entry, separator, reason = line.partition("#")
        parts = entry.split()
        if len(parts) != 2 or parts[0] not in CHECKS or not separator or not reason.strip():
            raise ValueError(f"{EXCEPTIONS}:{number}: should be CHECK NAME  # reason")
        found[parts[0]][parts[1]] = number
    return found


def run(tree, names):
    """What the checks find that no exception covers, and exceptions that cover nothing."""
    allowed = exceptions(tree)
    breaches = []
    for name in names:
        found = CHECKS[name](tree)
        breaches += [breach for breach in found if breach.name not in allowed[name]]
        used = {breach.name for breach in found}
        breaches += [
            Breach(EXCEPTIONS, line, f"covers nothing: {name} {exception}", exception)
            for exception, line in allowed[name].items()
            if exception not in used
        ]
    return sorted(breaches)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=" ".join(CHECKS))
    parser.add_argument("--root", default=pathlib.Path(__file__).resolve().parents[2])
    arguments = parser.parse_args()
    unknown = set(arguments.checks) - set(CHECKS)
    if unknown:
        parser.error(f"no such check: {' '.join(sorted(unknown))}")
    try:
        breaches = run(SourceTree(arguments.root), arguments.checks or list(CHECKS))
    except ValueError as error:
        sys.exit(str(error))
    for breach in breaches:
        print(breach)
    print(f"{len(breaches)} breaches")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
