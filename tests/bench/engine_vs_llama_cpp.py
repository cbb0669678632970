#!/usr/bin/env python3
"""Prefill and decode of `kvist bench engine` beside llama.cpp's llama-bench.

Same machine, model file and threads; the two take turns, so that both see the same neighbours.
Prints a Markdown table of medians, and of the ratio of each round with its least and greatest.

  tests/bench/engine_vs_llama_cpp.py --kvist build/kvist --peer "$(tests/bench/peers/llama_cpp.sh)"
"""
import argparse
import json
import os
import statistics
import subprocess

MODELS = {
    "SmolLM2 135M Q4_1": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "Gemma 3 270M Q4_K_M": "gemma-3-270m-q4_k_m.gguf",
}


def run_json(command):
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    return json.loads(done.stdout)


def run_kvist(args, model):
    result = run_json([
        args.kvist, "bench", "engine", "--model", model, "--threads", str(args.threads), "--prompt",
        str(args.prompt), "--new", str(args.new), "--rounds", "1", "--output", "json"
    ])
    return result, result["prefill_tokens_per_second"], result["decode_tokens_per_second"]


def run_peer(args, model):
    rows = run_json([
        os.path.join(args.peer, "llama-bench"), "-m", model, "-t", str(args.threads), "-p",
        str(args.prompt), "-n", str(args.new), "-r", "1", "-o", "json"
    ])
    prefill = next(row["avg_ts"] for row in rows if row["n_prompt"] > 0)
    decode = next(row["avg_ts"] for row in rows if row["n_gen"] > 0)
    return prefill, decode


def row_of(name, work, ours, theirs):
    ratios = [a / b for a, b in zip(ours, theirs)]
    median = statistics.median
    return (f"| {name} | {work} | {median(ours):.0f} | {median(theirs):.0f} | "
            f"{median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |")


def main():
    cache = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvist", default="build/release/kvist")
    parser.add_argument("--peer", required=True, help="the folder that holds llama-bench")
    parser.add_argument("--models", default=os.path.join(cache, "kvist", "models"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--new", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5, help="after one that is not counted")
    args = parser.parse_args()

    rows = []
    for name, file in MODELS.items():
        model = os.path.join(args.models, file)
        ours, theirs = [], []
        for number in range(args.rounds + 1):
            facts, *speeds = run_kvist(args, model)
            peer = run_peer(args, model)
            if number > 0:
                ours.append(speeds)
                theirs.append(peer)
        for index, work in enumerate((f"prefill {args.prompt}", f"decode {args.new}")):
            rows.append(row_of(name, work, [s[index] for s in ours], [s[index] for s in theirs]))
    limit = facts["limit"]
    print(f"CPU {facts['cpu']}, kernels {facts['kernels']}, {args.threads} threads; memory "
          f"{limit['memory_bandwidth_bytes_per_second'] / 1e9:.1f} GB/s, 8-bit products "
          f"{limit['int8_macs_per_second'] / 1e9:.0f} G/s, measured in the last run; "
          f"{args.rounds} alternating rounds.\n")
    print("| model | work | Kvist tok/s | llama.cpp tok/s | ratio | least to greatest |")
    print("| --- | --- | --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
