#!/usr/bin/env python3
"""What each KV format costs in perplexity, beside f16.

Scores a text in pieces of equal length, each as a text of its own, with `kvist score`, and compares
piece by piece: the ratio of perplexities with a 95 % interval from the paired differences of the
pieces' mean negative log probabilities (Student's t). Prints a Markdown table.

Two texts, both English prose with terms and examples, from packages that every Debian 12 has:
  perldiag  perl's list of diagnostics, perldiag.pod, as plain text, of perl-modules-5.36, Copyright
            Larry Wall and others, under the Artistic License or the GPL, version 1 or later
  topics    the topics of Python's help, pydoc_data/topics.py, sorted by name and joined by empty
            lines, of libpython3.11-stdlib, Copyright Python Software Foundation, under its licence

  tests/bench/perplexity.py --kvist build/kvist
  tests/bench/perplexity.py --kvist build/kvist --text my_text.txt
"""
import argparse
import hashlib
import json
import math
import os
import statistics
import subprocess
import tempfile

from pydoc_data import topics

MODELS = {
    "SmolLM2 135M Q4_1": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "Gemma 3 270M Q4_K_M": "gemma-3-270m-q4_k_m.gguf",
}
POD = "/usr/share/perl/5.36.0/pod/perldiag.pod"


def text_of(name):
    if name == "perldiag":
        done = subprocess.run(["pod2text", POD], check=True, stdout=subprocess.PIPE)
        return done.stdout.decode("utf-8")
    if name == "topics":
        return "\n\n".join(topics.topics[key] for key in sorted(topics.topics))
    with open(name, encoding="utf-8") as file:
        return file.read()


def piece_losses(args, model, text_file, kv_format):
    """The mean negative log probability of each whole piece."""
    command = [
        args.kvist, "score", "--file", text_file, "--model", model, "--chunk", str(args.chunk),
        "--kv-format", kv_format, "--threads", str(args.threads), "--top", "0", "--output", "json"
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    if done.returncode != 0:
        raise SystemExit(done.stderr.decode("utf-8", "replace").rstrip())
    pieces = json.loads(done.stdout)["chunks"]
    return [
        piece["negative_logprob"] / (piece["tokens"] - 1) for piece in pieces
        if piece["tokens"] == args.chunk
    ]


def t_quantile_95(degrees):
    """Student's two-sided 95 % quantile by Cornish-Fisher, within 0.01 from 5 degrees on."""
    z = statistics.NormalDist().inv_cdf(0.975)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def row_of(name, kv_format, losses, base):
    differences = [a - b for a, b in zip(losses, base)]
    mean = statistics.mean(differences)
    half = (t_quantile_95(len(differences) - 1) * statistics.stdev(differences) /
            math.sqrt(len(differences)))
    ratio, low, high = (math.exp(x) for x in (mean, mean - half, mean + half))
    return (f"| {name} | {kv_format} | {math.exp(statistics.mean(losses)):.3f} | {ratio:.4f} | "
            f"{low:.4f} to {high:.4f} | {len(losses)} |")


def score(args, text_name, text):
    """Prints the table of one text."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    print(f"{len(text)} characters of {text_name} (SHA-256 {digest[:16]}), "
          f"pieces of {args.chunk} tokens\n")
    print("| model | KV format | perplexity | ratio to f16 | 95 % interval | pieces |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        for name, model_file in MODELS.items():
            if args.match not in name:
                continue
            model = os.path.join(args.models, model_file)
            base = piece_losses(args, model, file.name, "f16")
            print(f"| {name} | f16 | {math.exp(statistics.mean(base)):.3f} | 1 | | {len(base)} |")
            for kv_format in args.formats.split(","):
                losses = piece_losses(args, model, file.name, kv_format)
                print(row_of(name, kv_format, losses, base), flush=True)
    print()


def main():
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvist", default="build/release/kvist")
    parser.add_argument("--models", default=os.path.join(cache, "kvist", "models"))
    parser.add_argument("--match", default="", help="only models whose name holds this")
    parser.add_argument("--formats", default="q8,q4", help="compared with f16, by commas")
    parser.add_argument("--text", action="append",
                        help="perldiag, topics or a file, repeatable (default: both texts)")
    parser.add_argument("--skip", type=int, default=0, help="characters left out at the start")
    parser.add_argument("--characters", type=int, default=41000, help="of each text, at most")
    parser.add_argument("--chunk", type=int, default=1024, help="tokens of a piece")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()

    for name in args.text or ["perldiag", "topics"]:
        score(args, name, text_of(name)[args.skip:][:args.characters])


if __name__ == "__main__":
    main()
