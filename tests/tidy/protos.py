"""Messages explain themselves: each field of a .proto has a comment of its own."""

import re

from source_tree import Breach

_FIELD = re.compile(
    r"^\s*(?:optional |repeated )?(?:map<[^>]*>|[\w.]+)\s+(?P<name>\w+)"
    r"\s*=\s*\d+\s*(?:\[[^\]]*\])?;(?P<rest>.*)$"
)
_BLOCK = re.compile(r"^\s*(?P<kind>message|enum|oneof|service)\s+(?P<name>\w+)\s*\{(?P<rest>.*)$")


def check(tree):
    breaches = []
    for path in tree.with_suffix(".proto"):
        blocks, before = [], ""
        for number, line in tree.lines(path):
            block, field = _BLOCK.match(line), _FIELD.match(line)
            if block and "}" not in block["rest"]:
                blocks.append((block["kind"], block["name"]))
            elif line.strip() == "}" and blocks:
                blocks.pop()
            elif field and blocks and blocks[-1][0] in ("message", "oneof"):
                own = field["rest"].strip().startswith("//")
                if not own and not before.strip().startswith("//"):
                    message = [name for kind, name in blocks if kind == "message"][-1]
                    name = f"{message}.{field['name']}"
                    breaches.append(Breach(path, number, f"{name} has no comment", name))
            before = line
    return breaches
