"""K1 to K8: what each measures, on our side and on the peer's. BENCHMARKS' goals stand beside the
work they belong to. Every function takes the Setting and returns {"title", "rows", ...}."""
import contextlib
import dataclasses
import json
import os
import statistics
import tempfile
import time

import programs
import report_math
from programs import say

PROMPT = "The red cat was"
MODELS = {
    "smollm2": ("SmolLM2 135M Q4_1", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    "gemma3": ("Gemma 3 270M Q4_K_M", "gemma-3-270m-q4_k_m.gguf"),
}
# Goals of K2 and K3 are for AVX2; with VNNI the machine can do more, and so must we.
GOALS = {
    "prefill": {"smollm2": (4, 5), "gemma3": (2, 2.5)},
    "decode": {"smollm2": (2, 2), "gemma3": (1.7, 1.7)},
    "batch 16": {"smollm2": (4, 5), "gemma3": (2, 2)},
}
DEEP_DECODE_GOAL = 2.5
INT8_SHARE_GOAL = 0.70
BANDWIDTH_SHARE_GOAL = 0.75


@dataclasses.dataclass
class Setting:
    """What all works share."""

    kvist: str
    chat_load: str
    llama: str  # folder of llama.cpp's programs, or ""
    transformers: str  # Python with transformers, or ""
    models: dict  # key of MODELS -> path
    machine: dict  # of `kvist doctor`
    threads: int = 2
    rounds: int = 5
    match: str = ""  # only work whose name holds this
    runs: int = 10  # K1's
    budget_seconds: float = 300  # K1's

    def wants(self, work):
        return self.match in work

    def goal(self, kind, model):
        vnni = "vnni" in self.machine["kernels"]
        return GOALS[kind][model][1 if vnni else 0]


def _measure(setting, row, ours, theirs, warm_up=True):
    """The row's numbers by alternating runs; ours() and theirs() return {"value": ...} and, ours,
    "share". Returns the error that ended the peer's turns, or None."""
    say(f"{row['model']}: {row['work']}")
    mine, other, error = report_math.alternate(ours, theirs, setting.rounds, warm_up)
    row["ours"] = mine.get("value", [])
    row["theirs"] = [] if error else other.get("value", [])
    if row.get("share"):
        row["share"]["ours"] = mine.get("share", [])
    return f"{row['model']}, {row['work']}: {error}" if error else None


def _row(model, work, unit, peer, **more):
    return {"model": MODELS[model][0], "work": work, "unit": unit, "better": "higher", "peer": peer,
            "ours": [], "theirs": [], **more}


def _bench_engine(setting, model, more):
    return programs.run_json([
        setting.kvist, "bench", "engine", "--model", setting.models[model], "--threads",
        str(setting.threads), "--rounds", "1", "--output", "json", *more])


def _llama_bench(setting, model, more):
    rows = programs.run_json([
        os.path.join(setting.llama, "llama-bench"), "-m", setting.models[model], "-t",
        str(setting.threads), "-r", "1", "-o", "json", *more])
    return {"value": rows[0]["avg_ts"]}


def _llama_batch(setting, model, batch):
    text = programs.run([
        os.path.join(setting.llama, "llama-batched-bench"), "-m", setting.models[model], "-t",
        str(setting.threads), "-c", str(256 * batch), "-npp", "128", "-ntg", "128", "-npl",
        str(batch), "--output-format", "jsonl"])
    line = next(line for line in text.splitlines() if line.startswith("{"))
    return {"value": json.loads(line)["speed_tg"]}


def prefill_pair(setting, model, tokens):
    """(ours, theirs) of a prefill."""
    def ours():
        result = _bench_engine(setting, model, ["--prompt", str(tokens), "--new", "0"])
        return {"value": result["prefill_tokens_per_second"],
                "share": result["limit"]["prefill_share_of_int8_peak"]}

    def theirs():
        return _llama_bench(setting, model, ["-p", str(tokens), "-n", "0"])

    return ours, theirs if setting.llama else None


def decode_pair(setting, model, depth):
    def ours():
        result = _bench_engine(setting, model,
                               ["--prompt", "0", "--new", "128", "--depth", str(depth)])
        return {"value": result["decode_tokens_per_second"],
                "share": result["limit"]["decode_share_of_bandwidth"]}

    def theirs():
        return _llama_bench(setting, model, ["-p", "0", "-n", "128", "-d", str(depth)])

    return ours, theirs if setting.llama else None


def batch_pair(setting, model, batch):
    def ours():
        result = _bench_engine(setting, model, ["--prompt", "0", "--new", "128", "--depth", "128",
                                                "--batch", str(batch)])
        return {"value": result["decode_tokens_per_second"]}

    def theirs():
        return _llama_batch(setting, model, batch)

    return ours, theirs if setting.llama else None


def _collect(setting, planned):
    """Measures (row, ours, theirs) triples that the setting wants."""
    rows, errors = [], []
    for row, ours, theirs in planned:
        if not setting.wants(row["work"]):
            continue
        error = _measure(setting, row, ours, theirs)
        rows.append(row)
        if error:
            errors.append(error)
    return {"rows": rows, "errors": errors}


def k2(setting):
    planned = []
    for model in setting.models:
        for tokens in (128, 512, 2048):
            row = _row(model, f"prefill {tokens}", "tok/s", "llama.cpp",
                       goal=setting.goal("prefill", model),
                       share={"of": "int8 peak", "ours": [], "goal": INT8_SHARE_GOAL})
            planned.append((row, *prefill_pair(setting, model, tokens)))
    return {"title": "prefill", **_collect(setting, planned)}


def k3(setting):
    planned = []
    for model in setting.models:
        for depth in (0, 512, 2048):
            goal = DEEP_DECODE_GOAL if depth == 2048 else setting.goal("decode", model)
            share_goal = BANDWIDTH_SHARE_GOAL if depth == 0 else None
            row = _row(model, f"decode 128 at depth {depth}", "tok/s", "llama.cpp", goal=goal,
                       share={"of": "bandwidth", "ours": [], "goal": share_goal})
            planned.append((row, *decode_pair(setting, model, depth)))
    return {"title": "decode", **_collect(setting, planned)}


def k4(setting):
    planned = []
    for model in setting.models:
        for batch in (1, 2, 4, 8, 16, 32, 64):
            goal = setting.goal("batch 16", model) if batch == 16 else None
            row = _row(model, f"{batch} sequences", "tok/s", "llama.cpp", goal=goal)
            planned.append((row, *batch_pair(setting, model, batch)))
    return {"title": "batched decode, 128 new tokens behind 128", **_collect(setting, planned)}


def _with_and_without_neighbour(side):
    """The share of its speed that a side keeps beside a busy process, and both speeds."""
    def measure():
        quiet = side()["value"]
        with programs.busy_neighbour():
            busy = side()["value"]
        return {"value": busy, "kept": busy / quiet}

    return measure


def k8(setting):
    fair = setting.threads / (setting.threads + 1)
    rows, errors = [], []
    for model in setting.models:
        for work, pair in (("prefill 512", prefill_pair(setting, model, 512)),
                           ("decode 128 at depth 0", decode_pair(setting, model, 0)),
                           ("16 sequences", batch_pair(setting, model, 16))):
            if not setting.wants(work):
                continue
            say(f"{MODELS[model][0]}: {work} beside a busy process")
            ours, theirs = (side and _with_and_without_neighbour(side) for side in pair)
            mine, other, error = report_math.alternate(ours, theirs, setting.rounds)
            if error:
                errors.append(f"{MODELS[model][0]}, {work}: {error}")
                other = {}
            rows.append(_row(model, f"{work}, busy", "tok/s", "llama.cpp") | {
                "ours": mine["value"], "theirs": other.get("value", [])})
            rows.append(_row(model, f"{work}, share kept", "of its speed", "llama.cpp",
                             goal_ours=fair) | {
                "ours": mine["kept"], "theirs": other.get("kept", [])})
    return {"title": "beside a third busy process", "rows": rows, "errors": errors}


# --- K1

def _kvist_cells(setting, model, new_tokens, kinds):
    """One run of these cache kinds, or of all: {kind: cell}."""
    only = ["--cache", ",".join(kinds)] if kinds else []
    result = programs.run_json([
        setting.kvist, "bench", "kv-cache", "--model", setting.models[model], "--threads",
        str(setting.threads), "--runs", "1", "--new", str(new_tokens), "--output", "json", *only])
    return {row["cache"]: row for row in result["rows"]}


def _prompt_ids(setting, model):
    path = setting.models[model]
    ids = programs.run_json([setting.kvist, "tokenize", PROMPT, "--model", path, "--output",
                             "json"])["token_ids"]
    return ids


class _Cells:
    """K1's cells of one model and number of new tokens, run by run."""

    def __init__(self, setting, model, new_tokens):
        self._setting = setting
        self._model = model
        self._new_tokens = new_tokens
        self.cells = {}  # (program, cache) -> cell

    def add(self, program, cache, seconds, **bytes_held):
        cell = self.cells.setdefault((program, cache), {
            "model": MODELS[self._model][0], "program": program, "cache": cache,
            "new_tokens": self._new_tokens, "seconds": [], "fewer_runs": False, **bytes_held})
        cell["seconds"].append(seconds)

    def wants(self, program, cache):
        """Whether another run is due: the first one alone where that took over the limit."""
        cell = self.cells.get((program, cache))
        if cell is None:
            return True
        if cell["seconds"][0] > self._setting.budget_seconds:
            cell["fewer_runs"] = True
            return False
        return True

    def run_ours(self):
        known = [key[1] for key in self.cells if key[0] == "kvist"]
        kinds = [kind for kind in known if self.wants("kvist", kind)]
        if known and not kinds:
            return
        cells = _kvist_cells(self._setting, self._model, self._new_tokens, kinds)
        for kind, row in cells.items():
            self.add("kvist", kind, row["mean_s"], kv_bytes=row["kv_bytes"],
                     peak_bytes=row["peak_bytes"])

    def run_theirs(self, peer, ids):
        for cache in ("cache", "no cache"):
            if self.wants("transformers", cache):
                answer = peer.ask({"ids": ids, "new_tokens": self._new_tokens,
                                   "cache": cache == "cache"})
                self.add("transformers", cache, answer["seconds"])


def _k1_rows(model, new_tokens, cells):
    """The comparisons drawn from the cells."""
    def seconds(program, cache):
        cell = cells.get((program, cache))
        return cell["seconds"] if cell else []

    paged, none = seconds("kvist", "paged"), seconds("kvist", "none")
    cached, uncached = seconds("transformers", "cache"), seconds("transformers", "no cache")
    rows = [_row(model, f"{new_tokens} new tokens, paged", "s", "transformers with cache",
                 goal=10 if new_tokens == 1000 else None) | {
                     "better": "lower", "ours": paged, "theirs": cached}]
    if cached and uncached:
        published = {300: " (published on a T4: 5.2)", 1000: " (published on a T4: 8.15)"}
        count = min(len(paged), len(none), len(cached), len(uncached))
        rows.append(_row(model, f"{new_tokens} new tokens, none / paged"
                         + published.get(new_tokens, ""), "times", "transformers") | {
            "ours": [n / p for n, p in zip(none[:count], paged)],
            "theirs": [n / p for n, p in zip(uncached[:count], cached)]})
    return rows


def k1(setting):
    rows, all_cells, errors, flags = [], [], [], {}
    for model, path in setting.models.items():
        ids = _prompt_ids(setting, model)
        peer = None
        if setting.transformers:
            script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peers",
                                  "transformers_peer.py")
            try:
                peer = programs.LineProgram([setting.transformers, script, "--model", path,
                                             "--threads", str(setting.threads)])
                flags["transformers"] = json.dumps(peer.ready["versions"])
                peer.ask({"ids": ids, "new_tokens": 2, "cache": True})  # a warm-up
            except (RuntimeError, ValueError) as problem:
                errors.append(f"{MODELS[model][0]}: transformers: {problem}")
                peer = None
        with contextlib.ExitStack() as stack:
            if peer:
                stack.callback(peer.close)
            for new_tokens in (1, 10, 100, 300, 1000):
                if not setting.wants(f"{new_tokens} new tokens"):
                    continue
                cells = _Cells(setting, model, new_tokens)
                for number in range(setting.runs):
                    say(f"{MODELS[model][0]}: {new_tokens} new tokens, run {number + 1}")
                    cells.run_ours()
                    if peer:
                        cells.run_theirs(peer, ids)
                rows += _k1_rows(model, new_tokens, cells.cells)
                all_cells += cells.cells.values()
    return {"title": f'the classic comparison of caches, prompt "{PROMPT}"', "rows": rows,
            "rounds": setting.runs, "cells": list(all_cells), "errors": errors, "flags": flags}


# --- K5 to K7

def system_text(setting, model, tokens):
    """A text of `tokens` tokens of the model, or a few more."""
    sentence = "The assistant knows number {0}: a cat on a warm roof dreams of {0} fat mice. "
    text, count, number = "", 0, 0
    while count < tokens:
        missing = tokens - count
        for _ in range(max(1, missing // 24)):
            text += sentence.format(number)
            number += 1
        count = len(programs.run_json([setting.kvist, "tokenize", text, "--model",
                                       setting.models[model], "--output", "json"])["token_ids"])
    return text


def _load(setting, target, address, system_file, more):
    return programs.run_json([setting.chat_load, "--target", target, "--address", address,
                              "--system", system_file, *more])


def _chat_values(result):
    return {"tokens per second": result["tokens_per_second"],
            "first turn, time to first token": statistics.median(result["first_turn_ttft_s"]),
            "later turns, time to first token": statistics.median(result["later_turns_ttft_s"])}


def k5(setting):
    rows, errors, flags = [], [], {}
    chat = ["--clients", "16", "--turns", "4", "--new", "32"]
    for model, path in setting.models.items():
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write(system_text(setting, model, 1000))
            file.flush()
            command = programs.llama_server_command(setting.llama, path, setting.threads, 16, 24576)

            def ours():
                with programs.kvist_server(setting.kvist, path, setting.threads) as (_, at):
                    return _chat_values(_load(setting, "kvist", at["grpc"], file.name, chat))

            def theirs():
                with programs.llama_server(command) as (_, at):
                    return _chat_values(_load(setting, "llama-server", at, file.name, chat))

            flags["llama-server"] = " ".join(command[1:]).replace(path, "FILE")
            say(f"{MODELS[model][0]}: chats")
            mine, other, error = report_math.alternate(
                ours, theirs if setting.llama else None, setting.rounds, warm_up=False)
            if error:
                errors.append(f"{MODELS[model][0]}: {error}")
                other = {}
        for name, unit, better, goal in (("tokens per second", "tok/s", "higher", 15),
                                         ("first turn, time to first token", "s", "lower", 25),
                                         ("later turns, time to first token", "s", "lower", 3)):
            rows.append(_row(model, name, unit, "llama-server", goal=goal) | {
                "better": better, "ours": mine[name], "theirs": other.get(name, [])})
    return {"title": "16 clients, 4-turn chats, a shared system prompt of 1,000 tokens",
            "rows": rows, "errors": errors, "flags": flags}


def _first_token_of_server(setting, path):
    """From the start of `kvist serve` to the first token of a client's completion."""
    start = time.perf_counter()
    with programs.kvist_server(setting.kvist, path, setting.threads) as (_, at):
        programs.run([setting.kvist, "generate", PROMPT, "--max-new-tokens", "1", "--ignore-eos",
                      "--endpoint", at["grpc"]])
        return time.perf_counter() - start


def k6(setting):
    rows, errors = [], []
    name = "llama-completion"
    if setting.llama and not os.path.exists(os.path.join(setting.llama, name)):
        name = "llama-cli"
    theirs_flags = ["-p", PROMPT, "-n", "1", "-no-cnv", "--no-warmup", "-t", str(setting.threads)]
    for model, path in setting.models.items():
        ids = ",".join(str(id) for id in _prompt_ids(setting, model))

        def alone():
            return {"value": programs.seconds_of([
                setting.kvist, "score", "--ids", ids, "--top", "1", "--model", path, "--threads",
                str(setting.threads)])}

        def served():
            return {"value": _first_token_of_server(setting, path)}

        def theirs():
            return {"value": programs.seconds_of(
                [os.path.join(setting.llama, name), "-m", path, *theirs_flags])}

        for work, ours in (("one token in a process of its own", alone),
                           ("server start and a client's first token", served)):
            row = _row(model, work, "s", name, goal=2) | {"better": "lower"}
            error = _measure(setting, row, ours, theirs if setting.llama else None)
            rows.append(row)
            if error:
                errors.append(error)
    return {"title": "process start to first token, warm page cache", "rows": rows,
            "errors": errors, "flags": {name: " ".join(theirs_flags)}}


def k7(setting):
    rows, errors, flags = [], [], {}
    load = ["--clients", "32", "--turns", "1", "--new", "8", "--distinct"]
    for model, path in setting.models.items():
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            # With the session's line, the question and the answer: 1,024 tokens.
            file.write(system_text(setting, model, 960))
            file.flush()
            command = programs.llama_server_command(setting.llama, path, setting.threads, 32, 34816)

            def ours():
                with programs.kvist_server(setting.kvist, path, setting.threads) as (child, at):
                    _load(setting, "kvist", at["grpc"], file.name, load)
                    metrics = programs.http_get(f"http://{at['metrics']}/metrics")
                    return {"value": programs.resident_bytes(child.pid) / 2**20,
                            "waste": block_waste(metrics)}

            def theirs():
                with programs.llama_server(command) as (child, at):
                    _load(setting, "llama-server", at, file.name, load)
                    return {"value": programs.resident_bytes(child.pid) / 2**20}

            flags["llama-server"] = " ".join(command[1:]).replace(path, "FILE")
            say(f"{MODELS[model][0]}: memory of 32 sessions")
            mine, other, error = report_math.alternate(
                ours, theirs if setting.llama else None, setting.rounds, warm_up=False)
            if error:
                errors.append(f"{MODELS[model][0]}: {error}")
                other = {}
        rows.append(_row(model, "resident memory", "MiB", "llama-server", goal=1) | {
            "better": "lower", "ours": mine["value"], "theirs": other.get("value", [])})
        rows.append(_row(model, "waste in blocks (published for paging: 0.04)", "of the blocks",
                         "", goal_ours=0.03) | {"better": "lower", "ours": mine["waste"]})
    return {"title": "memory at 32 sessions of 1,024 tokens", "rows": rows, "errors": errors,
            "flags": flags}


def block_waste(metrics, block_tokens=16):
    """The share of the used blocks' places that hold no token. Sessions share no whole block here,
    so what the worker computed, and what it copied out of other sessions' first blocks, is held."""
    held = sum(report_math.metric_sum(metrics, name)
               for name in ("kvist_prefill_tokens_total", "kvist_decode_tokens_total",
                            "kvist_prefix_cache_hits_total"))
    blocks = sum(report_math.metric_sum(metrics, "kvist_blocks", state=state, pool="0/f16")
                 for state in ("active", "cached"))
    if blocks == 0:
        raise RuntimeError("the server holds no blocks")
    return 1 - held / (blocks * block_tokens)


WORKS = {"K1": k1, "K2": k2, "K3": k3, "K4": k4, "K5": k5, "K6": k6, "K7": k7, "K8": k8}
