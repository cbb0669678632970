#!/usr/bin/env python3
"""Makes tests/golden/tiny/windows.json: logits of tiny models under a window with sinks.

    VENV/bin/python tests/golden/make_window_references.py      (VENV: make_tiny_references.py)

transformers (float32, eager attention) computes them on the tensors of the F32 files in
tests/golden/tiny, under a mask that is written down here and handed to each layer. The token at
position p sees p-window+1 .. p and 0 .. sinks-1; gemma3's sliding layers keep their own window and
have no sinks. Before that, the loaded model must give the logits in MODEL.json, which llama.cpp
agrees with.
"""

import json

import gguf
import numpy
import torch
import transformers

from make_tiny_references import TINY, VOCABULARY, file_name, load_file, rounded

WINDOW, SINKS = 20, 3
PROMPT_TOKENS = 120
SEED = 9100
# The last position that sees everything, the first that does not, one with a block fallen out, and
# the last.
ROWS = (22, 23, 63, PROMPT_TOKENS - 1)
# What must not be mistaken for the above, in the last row.
SPANS = {
    "window_19": (19, SINKS),
    "window_21": (21, SINKS),
    "sinks_2": (WINDOW, 2),
    "sinks_4": (WINDOW, 4),
}


def mask(window, sinks):
    """[1, 1, query, key]: 0 where the query sees the key, else so low that it has no weight."""
    query = numpy.arange(PROMPT_TOKENS)[:, None]
    key = numpy.arange(PROMPT_TOKENS)[None, :]
    seen = (key <= query) & ((key > query - window) | (key < sinks))
    low = numpy.finfo(numpy.float32).min
    return torch.from_numpy(numpy.where(seen, 0, low).astype(numpy.float32))[None, None]


def rope_halves(values, heads):
    """The rows of q or k as transformers wants them: llama's files have the two values that rotate
    together side by side."""
    rows, cols = values.shape
    pairs = values.reshape(heads, rows // heads // 2, 2, cols)
    return pairs.swapaxes(1, 2).reshape(rows, cols)


def load_llama(path, config):
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**config, attn_implementation="eager")
    )
    model = model.float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = stored[file_name("qwen2", name)].astype(numpy.float32)  # the same names
            if "q_proj" in name:
                values = rope_halves(values, config["num_attention_heads"])
            elif "k_proj" in name:
                values = rope_halves(values, config["num_key_value_heads"])
            parameter.copy_(torch.from_numpy(values.copy()))
    return model


def rows_of(model, ids, attention_mask=None):
    with torch.no_grad():
        output = model(torch.tensor([ids]), attention_mask=attention_mask, use_cache=False)
    return output.logits[0].double().numpy()


def check_unmasked(model, document):
    variant = document["variants"]["F32"]
    for ids, expected in zip(document["prompts"], variant["logits"]):
        difference = numpy.abs(rows_of(model, ids)[-1] - expected).max()
        assert difference < 1e-4, f"{document['model']} is {difference} off without a mask"


def make(name):
    document = json.loads((TINY / f"{name}.json").read_text())
    config, path = document["config"], TINY / document["variants"]["F32"]["file"]
    gemma = document["arch"] == "gemma3"
    model = load_file(path, "gemma3", config) if gemma else load_llama(path, config)
    check_unmasked(model, document)
    own = config.get("sliding_window", 0)

    def under(span, sliding=(own, 0)):
        masks = mask(*span)
        if gemma:
            masks = {"full_attention": masks, "sliding_attention": mask(*sliding)}
        return rows_of(model, prompt, masks)

    random = numpy.random.default_rng(SEED)
    prompt = [2] * gemma + random.integers(4, 296, PROMPT_TOKENS - gemma).tolist()
    right = under((WINDOW, SINKS))
    others = {
        label: {"window": window, "sinks": sinks, "logits": under((window, sinks))[-1]}
        for label, (window, sinks) in SPANS.items()
    }
    if gemma:
        others["sliding_layers_with_sinks"] = {
            "logits": under((WINDOW, SINKS), sliding=(own, SINKS))[-1]
        }
        others["sliding_layers_with_the_window_asked_for"] = {
            "logits": under((WINDOW, SINKS), sliding=(WINDOW, 0))[-1]
        }
    others["no_window"] = {"logits": under((PROMPT_TOKENS, 0))[-1]}
    for label, other in others.items():
        other["differs_by"] = round(float(numpy.abs(other["logits"] - right[-1]).max()), 5)
        other["logits"] = rounded(other["logits"])
        print(name, label, other["differs_by"])
    return {
        "file": path.name,
        "prompt": prompt,
        "window": WINDOW,
        "sinks": SINKS,
        "rows": list(ROWS),
        "logits": [rounded(right[row]) for row in ROWS],
        "others": others,
    }


def main():
    torch.set_num_threads(1)
    document = {name: make(name) for name in ("llama_a", "gemma3_a")}
    assert all(len(case["logits"][0]) == VOCABULARY for case in document.values())
    (TINY / "windows.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
