"""Shell scripts parse, stop at the first error, and can be run."""

import os
import subprocess

from source_tree import Breach


def check(tree):
    breaches = []
    for path in tree.files:
        if not path.endswith(".sh") and not path.startswith(".ci/"):
            continue
        file = tree.root / path
        parsed = subprocess.run(["bash", "-n", file], capture_output=True, text=True, check=False)
        if parsed.returncode != 0:
            breaches.append(Breach(path, 1, f"does not parse: {parsed.stderr.strip()}", path))
        if not tree.text(path).startswith("#!"):
            continue  # to be sourced
        if "\nset -euo pipefail\n" not in tree.text(path):
            breaches.append(Breach(path, 1, 'lacks "set -euo pipefail"', path))
        if not os.access(file, os.X_OK):
            breaches.append(Breach(path, 1, "is not executable", path))
    return breaches
