#!/usr/bin/env python3
"""Greedy completions by transformers on the CPU, asked for line by line.

  transformers_peer.py --model FILE.gguf --threads T

Reads one JSON object a line, {"ids": [...], "new_tokens": N, "cache": true}, and answers each with
one on a line: {"seconds": S, "ids": [...]}. The weights are those of the GGUF file, dequantised to
32-bit floats when they are loaded, as transformers does. Prints {"ready": true, "versions": {...}}
when the model is loaded.
"""
import argparse
import json
import os
import sys
import time


def load(path, threads):
    import torch
    import transformers
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        os.path.dirname(os.path.abspath(path)), gguf_file=os.path.basename(path),
        dtype=torch.float32, local_files_only=True)
    model.eval()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return torch, model, versions


def complete(torch, model, request):
    prompt = torch.tensor([request["ids"]])
    new_tokens = request["new_tokens"]
    start = time.perf_counter()
    ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False,
                         max_new_tokens=new_tokens, min_new_tokens=new_tokens,
                         use_cache=request["cache"], pad_token_id=0, eos_token_id=None)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "ids": ids[0, prompt.shape[1]:].tolist()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    # Libraries print to stdout what is meant for people.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    torch, model, versions = load(args.model, args.threads)
    print(json.dumps({"ready": True, "versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(complete(torch, model, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
