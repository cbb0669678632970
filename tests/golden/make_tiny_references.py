#!/usr/bin/env python3
"""Makes the tiny random-weight models of qwen2 and gemma3 in tests/golden/tiny, with the logits
that transformers gives.

    python3 -m venv VENV && VENV/bin/pip install torch transformers gguf numpy
    VENV/bin/python tests/golden/make_tiny_references.py [--check LLAMA_SERVER]

For each model it writes one GGUF file per storage type, tensors and metadata named as llama.cpp's
converter names them, and MODEL.json with the logits of transformers (float32, eager attention) on
the dequantised tensors of that very file. --check runs llama.cpp's server on each file and prints
how far its log probabilities are (tests/bench/peers/llama_cpp.sh builds it).
"""

import argparse
import json
import pathlib
import subprocess
import time
import urllib.request

import gguf
import numpy
import torch
import transformers

VOCABULARY = 300
GREEDY_TOKENS = 24
WHOLE_CHARACTER = 266  # "re" in one vocabulary, "f" in the other
TINY = pathlib.Path(__file__).resolve().parent / "tiny"
Type = gguf.GGMLQuantizationType

QWEN2 = {
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    "hidden_size": 64,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
}
GEMMA3 = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 7,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,  # not 64 / 4
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "layer_types": ["sliding_attention"] * 5 + ["full_attention", "sliding_attention"],
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    },
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
}
# name: (architecture, config, seed, storage types)
MODELS = {
    "qwen2_a": (
        "qwen2",
        {**QWEN2, "tie_word_embeddings": False},
        8000,
        (Type.F32, Type.F16, Type.Q8_0, Type.Q4_0, Type.Q4_1),
    ),
    "qwen2_tied": ("qwen2", {**QWEN2, "tie_word_embeddings": True}, 8001, (Type.F32, Type.Q8_0)),
    "gemma3_a": ("gemma3", GEMMA3, 8002, (Type.F32, Type.Q8_0, Type.Q4_0, Type.Q4_1)),
}
FILE_TYPES = {Type.F32: 0, Type.F16: 1, Type.Q4_0: 2, Type.Q4_1: 3, Type.Q8_0: 7}

# The file's name of a tensor for each of transformers' names within a layer.
LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
NORM_NAMES = {
    "qwen2": {"post_attention_layernorm": "ffn_norm"},
    "gemma3": {
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
    },
}
TOP_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def file_name(arch, name):
    """The file's name for transformers' `name`."""
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{(LAYER_NAMES | NORM_NAMES[arch])[module]}.{kind}"


def new_model(arch, config):
    if arch == "qwen2":
        model = transformers.Qwen2ForCausalLM(
            transformers.Qwen2Config(**config, attn_implementation="eager")
        )
    else:
        model = transformers.Gemma3ForCausalLM(
            transformers.Gemma3TextConfig(**config, attn_implementation="eager")
        )
    return model.float().eval()


def parameters_of(model):
    """{name: parameter}, a tied head once."""
    return {name: value for name, value in model.named_parameters() if value is not None}


def random_tensors(arch, config, seed):
    """{transformers' name: float32 array as the file holds it}: gemma3's norms as 1 + w."""
    random = numpy.random.default_rng(seed)
    tensors = {}
    for name, parameter in parameters_of(new_model(arch, config)).items():
        shape = tuple(parameter.shape)
        if name.endswith("norm.weight"):
            values = 1 + 0.3 * random.standard_normal(shape)
        elif name.endswith("bias"):
            values = 0.5 * random.standard_normal(shape)
        elif name.startswith(("model.embed_tokens", "lm_head")):
            values = 3 / numpy.sqrt(shape[1]) * random.standard_normal(shape)
        else:
            values = 1.5 / numpy.sqrt(shape[1]) * random.standard_normal(shape)
        tensors[name] = values.astype(numpy.float32)
    return tensors


def random_prompts(arch, seed):
    random = numpy.random.default_rng(seed + 1000)
    if arch == "gemma3":
        return [[2] + random.integers(4, VOCABULARY, count).tolist() for count in (5, 18, 39)]
    return [random.integers(0, 296, count).tolist() for count in (6, 19, 40)]


def add_tokenizer(writer, arch):
    if arch == "gemma3":
        letters = (
            ["\u2581"]
            + [chr(code) for code in range(ord("a"), ord("z") + 1)]
            + list("0123456789.,!")
        )
        tokens = (
            ["<pad>", "<eos>", "<bos>", "<unk>"]
            + [f"<0x{byte:02X}>" for byte in range(256)]
            + letters
        )
        kinds = [3, 3, 3, 2] + [6] * 256 + [1] * len(letters)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens[:VOCABULARY])
        writer.add_token_scores([0.0] * 260 + [-float(rank) for rank in range(VOCABULARY - 260)])
        writer.add_token_types(kinds[:VOCABULARY])
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(0)
        writer.add_add_bos_token(True)
        writer.add_add_space_prefix(False)
        return
    fields = gguf.GGUFReader(TINY / "qwen3_a.F32.gguf").fields  # the same family's tokenizer
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(fields["tokenizer.ggml.tokens"].contents())
    writer.add_token_types(fields["tokenizer.ggml.token_type"].contents())
    writer.add_token_merges(fields["tokenizer.ggml.merges"].contents())
    writer.add_eos_token_id(298)
    writer.add_pad_token_id(296)
    writer.add_bos_token_id(296)
    writer.add_add_bos_token(False)


def write_file(path, model, storage, tensors):
    arch, config = MODELS[model][:2]
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("model")
    writer.add_name(f"tiny random {model}")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if arch == "gemma3":
        # As in published files: the layer pattern and the sliding layers' rope base are not stored.
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
        writer.add_sliding_window(config["sliding_window"])
        writer.add_rope_freq_base(config["rope_parameters"]["full_attention"]["rope_theta"])
    else:
        writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_file_type(FILE_TYPES[storage])
    writer.add_quantization_version(2)
    add_tokenizer(writer, arch)
    for name, values in tensors.items():
        kind = storage if values.ndim == 2 else Type.F32
        writer.add_tensor(file_name(arch, name), gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load_file(path, arch, config):
    """transformers' model with the dequantised tensors of the file."""
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    model = new_model(arch, config)
    with torch.no_grad():
        for name, parameter in parameters_of(model).items():
            tensor = stored.pop(file_name(arch, name))
            values = gguf.dequantize(tensor.data, tensor.tensor_type).astype(numpy.float32)
            if arch == "gemma3" and name.endswith("norm.weight"):
                values = values - numpy.float32(1)
            parameter.copy_(torch.from_numpy(values.reshape(parameter.shape).copy()))
    assert not stored, f"tensors that transformers does not have: {list(stored)}"
    return model


def last_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids]), use_cache=False).logits[0, -1].double().numpy()


def greedy(model, ids):
    ids, chosen, margins = list(ids), [], []
    for _ in range(GREEDY_TOKENS):
        logits = last_logits(model, ids)
        best, second = numpy.sort(logits)[::-1][:2]
        chosen.append(int(numpy.argmax(logits)))
        margins.append(round(float(best - second), 6))
        ids.append(chosen[-1])
    return {"ids": chosen, "margin": margins}


def sensitivity(arch, config, tensors, prompt):
    """How far the logits of the prompt move if a feature is left out or wrong, by feature."""

    def logits_of(changed_config, change=lambda name, values: values):
        model = new_model(arch, changed_config)
        with torch.no_grad():
            for name, parameter in parameters_of(model).items():
                minus = 1 if arch == "gemma3" and name.endswith("norm.weight") else 0
                parameter.copy_(
                    torch.from_numpy(change(name, tensors[name]) - numpy.float32(minus))
                )
        return last_logits(model, prompt)

    def with_theta(kind, theta):
        rope = {**config["rope_parameters"], kind: {"rope_type": "default", "rope_theta": theta}}
        return {**config, "rope_parameters": rope}

    if arch == "qwen2":
        rope = {"rope_type": "default", "rope_theta": 900000.0}
        wrong = {
            "no q/k/v biases": logits_of(
                config, lambda name, v: v * 0 if name.endswith("bias") else v
            ),
            "rope base 10% off": logits_of({**config, "rope_parameters": rope}),
        }
    else:
        flat = numpy.float32(1)
        wrong = {
            "no window": logits_of(
                {
                    **config,
                    "layer_types": ["full_attention"] * 7,
                    "rope_parameters": with_theta("full_attention", 10000.0)["rope_parameters"],
                }
            ),
            "window one too wide": logits_of({**config, "sliding_window": 17}),
            "window one too narrow": logits_of({**config, "sliding_window": 15}),
            "sliding layers with the rope base of full ones": logits_of(
                with_theta("sliding_attention", 1e6)
            ),
            "full layer with the rope base of sliding ones": logits_of(
                with_theta("full_attention", 1e4)
            ),
            "attention scale 1/sqrt(hidden/heads)": logits_of(
                {**config, "query_pre_attn_scalar": 16}
            ),
            "exact GELU": logits_of({**config, "hidden_activation": "gelu"}),
            "q/k norm weights ignored": logits_of(
                config, lambda name, v: v * 0 + flat if "q_norm" in name or "k_norm" in name else v
            ),
            "post norm weights ignored": logits_of(
                config, lambda name, v: v * 0 + flat if "post_" in name else v
            ),
        }
    right = logits_of(config)
    return {
        name: round(float(numpy.abs(logits - right).max()), 5) for name, logits in wrong.items()
    }


def rounded(values):
    return [float(f"{value:.7g}") for value in values]


def check_with(server, path, prompt, logits):
    """Largest difference of log probability to llama.cpp's server on the file, over the tokens
    within 10 nats of the best."""
    command = [
        server,
        "-m",
        path,
        "--port",
        "18999",
        "-c",
        "256",
        "-t",
        "1",
        "-fa",
        "off",
        "--no-warmup",
        "--cache-type-k",
        "f32",
        "--cache-type-v",
        "f32",
        "--parallel",
        "1",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            body = json.dumps(
                {
                    "prompt": prompt,
                    "n_predict": 1,
                    "n_probs": VOCABULARY,
                    "temperature": 0,
                    "cache_prompt": False,
                    # Neither end of text nor part of a character: else no odds are told.
            "logit_bias": [[WHOLE_CHARACTER, 100]],
                }
            ).encode()
            request = urllib.request.Request(
                "http://127.0.0.1:18999/completion", body, {"Content-Type": "application/json"}
            )
            for _ in range(100):
                time.sleep(0.2)
                try:
                    answer = json.load(urllib.request.urlopen(request))
                    break
                except OSError:
                    continue
        finally:
            process.terminate()
    expected = logits - numpy.log(numpy.sum(numpy.exp(logits)))
    near = expected.max() - 10
    theirs = {
        entry["id"]: entry["logprob"]
        for entry in answer["completion_probabilities"][0]["top_logprobs"]
    }
    return max(abs(theirs[token] - expected[token]) for token in theirs if expected[token] > near)


def make(model, server):
    arch, config, seed, types = MODELS[model]
    tensors = random_tensors(arch, config, seed)
    prompts = random_prompts(arch, seed)
    variants = {}
    for storage in types:
        path = TINY / f"{model}.{storage.name}.gguf"
        write_file(path, model, storage, tensors)
        reference = load_file(path, arch, config)
        logits = [last_logits(reference, prompt) for prompt in prompts]
        variants[storage.name] = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "tensor_types": sorted({"F32", storage.name}),
            "logits": [rounded(values) for values in logits],
            "greedy_of_prompt_1": greedy(reference, prompts[1]),
        }
        line = f"{path.name}: {logits[2].min():.1f} to {logits[2].max():.1f}"
        if server:
            difference = max(check_with(server, path, *pair) for pair in zip(prompts, logits))
            variants[storage.name]["llama_cpp_max_logprob_diff"] = float(f"{difference:.3g}")
            line += f", llama.cpp differs by {difference:.3g}"
        print(line)
    moved = sensitivity(arch, config, tensors, prompts[2])
    print(model, moved)
    document = {
        "model": model,
        "arch": arch,
        "config": config,
        "seed": seed,
        "prompts": prompts,
        "sensitivity_max_abs_at_40": moved,
        "variants": variants,
    }
    (TINY / f"{model}.json").write_text(json.dumps(document, separators=(",", ":")) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--check", metavar="LLAMA_SERVER", help="llama.cpp's server program to compare with"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for model in MODELS:
        make(model, arguments.check)


if __name__ == "__main__":
    main()
