"""The report's scripts: statistics and tables by themselves, whole works on programs that only
pretend, and the chat load on a server of a tiny model and on a pretended llama-server."""
import http.server
import json
import os
import pathlib
import stat
import subprocess
import sys
import tempfile
import threading
import unittest

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))

import programs  # noqa: E402
import report  # noqa: E402
import report_math  # noqa: E402
import works  # noqa: E402

MACHINE = {"cpu": "A CPU", "kernels": "avx2", "cores": {"load": 0.1},
           "limit": {"memory_bandwidth_bytes_per_second": 20e9, "int8_macs_per_second": 300e9}}


def row(**more):
    return {"model": "m", "work": "w", "unit": "tok/s", "better": "higher", "peer": "p",
            "ours": [10, 30, 20], "theirs": [5, 10, 20], **more}


class RatioTest(unittest.TestCase):
    def test_is_taken_round_by_round_and_above_one_is_better(self):
        self.assertEqual(report_math.ratios(row()), [2, 3, 1])
        self.assertEqual(report_math.ratios(row(better="lower")), [1 / 2, 1 / 3, 1])
        self.assertEqual(report_math.ratios(row(theirs=[])), [])

    def test_the_median_decides_about_the_goal(self):
        self.assertEqual(report_math.verdict(row(goal=2)), "reached")
        self.assertEqual(report_math.verdict(row(goal=2.1)), "missed")
        self.assertEqual(report_math.verdict(row()), "")
        self.assertEqual(report_math.verdict(row(goal=2, theirs=[])), "")

    def test_a_goal_of_our_own_value_needs_no_peer(self):
        waste = row(better="lower", ours=[0.01, 0.05, 0.02], theirs=[], goal_ours=0.03)
        self.assertEqual(report_math.verdict(waste), "reached")
        self.assertEqual(report_math.verdict(waste | {"better": "higher"}), "missed")

    def test_a_share_of_the_limit_is_a_goal_too(self):
        share = {"of": "bandwidth", "ours": [0.5, 0.8, 0.7], "goal": 0.75}
        self.assertEqual(report_math.verdict(row(goal=2, share=share)), "missed")
        self.assertEqual(report_math.verdict(row(goal=2, share=share | {"goal": 0.7})), "reached")


class TableTest(unittest.TestCase):
    def test_a_line_has_a_cell_for_each_head(self):
        line = report_math.table_line(row(goal=2, share={"of": "peak", "ours": [0.5], "goal": 0.7}))
        self.assertEqual(line, "| m | w | tok/s | 20 | 10 | p | 2 | 1 to 3 | 50 % of the peak | "
                               "2x, 70 % of the peak | missed |")
        self.assertEqual(report_math.TABLE_HEAD.splitlines()[0].count("|"), line.count("|"))
        alone = report_math.table_line(row(theirs=[]))
        self.assertEqual(alone.count("|"), line.count("|"))

    def test_numbers_are_short_and_have_no_exponent(self):
        texts = [report_math.number(value) for value in (0, 12345.6, 123.44, 12.345, 0.01234, 20)]
        self.assertEqual(texts, ["0", "12346", "123.4", "12.35", "0.0123", "20"])

    def test_the_report_begins_with_the_machine(self):
        result = {"id": "K2", "title": "prefill", "rounds": 3, "date": "2000-01-01", "threads": 2,
                  "machine": MACHINE, "rows": [row()], "errors": ["x failed"], "flags": {"f": "-a"}}
        text = report_math.report([result], charts={"K2"})
        head = text.split("##")[0]
        for fact in ("A CPU", "avx2", "2 threads", "20.0 GB/s", "300 G"):
            self.assertIn(fact, head)
        self.assertIn("not measured: x failed", text)
        self.assertIn("(K2.png)", text)
        self.assertNotIn(".png", report_math.report([result]))

    def test_cells_have_mean_deviation_and_a_mark_for_fewer_runs(self):
        cell = {"model": "m", "program": "kvist", "cache": "paged", "new_tokens": 10,
                "seconds": [1.0, 3.0], "fewer_runs": True, "kv_bytes": 7, "peak_bytes": 8}
        self.assertIn("| 10 | 2 | 1.41 | 7 | 8 | 2 (over", report_math.cell_table([cell])[-1])
        self.assertEqual(report_math.deviation([5.0]), 0)


class AlternateTest(unittest.TestCase):
    def test_sides_take_turns_and_the_warm_up_is_not_counted(self):
        order = []

        def side(name):
            def measure():
                order.append(name)
                return {"value": len(order)}
            return measure

        ours, theirs, error = report_math.alternate(side("a"), side("b"), rounds=2)
        self.assertEqual("".join(order), "baabba")
        self.assertEqual((ours, theirs, error), ({"value": [3, 6]}, {"value": [4, 5]}, None))
        order.clear()
        report_math.alternate(side("a"), side("b"), rounds=1, warm_up=False)
        self.assertEqual("".join(order), "ab")

    def test_a_peer_that_fails_is_told_and_we_are_measured_all_the_same(self):
        def broken():
            raise RuntimeError("no such flag")

        ours, theirs, error = report_math.alternate(lambda: {"value": 1}, broken, rounds=2)
        self.assertEqual(ours, {"value": [1, 1]})
        self.assertEqual(theirs, {})
        self.assertIn("no such flag", error)
        with self.assertRaises(RuntimeError):
            report_math.alternate(broken, None, rounds=1)


class WasteTest(unittest.TestCase):
    METRICS = ('kvist_prefill_tokens_total{worker="w"} 100\n'
               'kvist_decode_tokens_total{worker="w"} 10\n'
               'kvist_prefix_cache_hits_total{worker="w"} 2\n'
               'kvist_blocks{pool="0/f16",state="cached",tier="device",worker="w"} 6\n'
               'kvist_blocks{pool="0/f16",state="active",tier="device",worker="w"} 1\n'
               'kvist_blocks{pool="0/f16",state="free",tier="device",worker="w"} 50\n'
               'kvist_blocks{pool="1/f16",state="cached",tier="device",worker="w"} 90\n')

    def test_is_the_share_of_places_without_a_token(self):
        self.assertEqual(works.block_waste(self.METRICS), 0)
        self.assertEqual(works.block_waste(self.METRICS.replace(" 6\n", " 13\n")), 0.5)

    def test_a_server_without_blocks_is_an_error(self):
        with self.assertRaises(RuntimeError):
            works.block_waste("")


# A program for each command that the works run. The number that it tells depends on its name.
PRETENDER = f"""#!{sys.executable}
import json, os, sys
name, words = os.path.basename(sys.argv[0]), sys.argv[1:]
speed = 400.0 if name == "kvist" else 100.0
if words[0] == "doctor":
    print(json.dumps({MACHINE!r}))
elif words[:2] == ["bench", "engine"]:
    print(json.dumps({{"prefill_tokens_per_second": speed, "decode_tokens_per_second": speed,
        "limit": {{"decode_share_of_bandwidth": 0.8, "prefill_share_of_int8_peak": 0.6}}}}))
elif words[:2] == ["bench", "kv-cache"]:
    new = int(words[words.index("--new") + 1])
    kinds = words[words.index("--cache") + 1] if "--cache" in words else "none,paged"
    print(json.dumps({{"rows": [{{"cache": cache, "new_tokens": new, "kv_bytes": 1,
        "peak_bytes": 2, "mean_s": new * (4 if cache == "none" else 1)}}
        for cache in kinds.split(",")]}}))
elif words[0] == "tokenize":
    print(json.dumps({{"token_ids": [1, 2, 3]}}))
elif name == "llama-bench":
    print(json.dumps([{{"avg_ts": speed}}]))
elif name == "llama-batched-bench":
    print("a line for people")
    print(json.dumps({{"speed_tg": speed}}))
elif name == "transformers" and words[0].endswith("transformers_peer.py"):
    print(json.dumps({{"ready": True, "versions": {{"torch": "1"}}}}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        per_token = 20 if asked["cache"] else 60
        print(json.dumps({{"seconds": per_token * asked["new_tokens"], "ids": []}}), flush=True)
elif name in ("llama-completion", "kvist"):
    pass
else:
    sys.exit(f"{{name}} does not pretend {{words}}")
"""


class WorksTest(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory()
        self.addCleanup(self._folder.cleanup)
        self.folder = pathlib.Path(self._folder.name)
        for name in ("kvist", "llama-bench", "llama-batched-bench", "llama-completion",
                     "transformers"):
            path = self.folder / name
            path.write_text(PRETENDER)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        for _, file in works.MODELS.values():
            (self.folder / file).write_text("")

    def run_report(self, *more):
        report.main(["--kvist", str(self.folder / "kvist"), "--llama", str(self.folder),
                     "--transformers", str(self.folder / "transformers"), "--models",
                     str(self.folder), "--results", str(self.folder / "results"), *more])

    def result(self, name):
        return json.loads((self.folder / "results" / f"{name}.json").read_text())

    def test_engine_works_have_a_row_for_each_model_and_size(self):
        self.run_report("--only", "K2,K3,K4", "--rounds", "1")
        for name, count in (("K2", 6), ("K3", 6), ("K4", 14)):
            result = self.result(name)
            self.assertEqual(len(result["rows"]), count)
            self.assertEqual(result["errors"], [])
            for found in result["rows"]:
                self.assertEqual(report_math.ratios(found), [4])
        self.assertEqual(report_math.verdict(self.result("K2")["rows"][0]), "missed")  # the share
        self.assertEqual(report_math.verdict(self.result("K3")["rows"][0]), "reached")
        text = (self.folder / "results" / "REPORT.md").read_text()
        self.assertEqual(text.count("| SmolLM2 135M Q4_1 |"), 13)

    def test_one_model_and_matching_work_alone(self):
        self.run_report("--only", "K2", "--rounds", "1", "--model", "gemma3", "--match", "512")
        self.assertEqual([found["work"] for found in self.result("K2")["rows"]], ["prefill 512"])

    def test_the_neighbour_is_there_for_the_second_half_of_each_turn(self):
        self.run_report("--only", "K8", "--rounds", "1", "--model", "smollm2", "--match", "16 seq")
        busy, kept = self.result("K8")["rows"]
        self.assertEqual((busy["ours"], busy["theirs"]), ([400], [100]))
        self.assertEqual((kept["ours"], kept["theirs"]), ([1], [1]))

    def test_the_cache_table_marks_cells_over_the_limit(self):
        self.run_report("--only", "K1", "--model", "smollm2", "--runs", "3", "--budget-seconds",
                        "2500", "--match", "100")
        result = self.result("K1")
        cells = {(cell["program"], cell["cache"], cell["new_tokens"]): cell
                 for cell in result["cells"]}
        self.assertEqual(len(cells), 8)
        self.assertEqual(len(cells["transformers", "cache", 100]["seconds"]), 3)
        self.assertEqual(len(cells["transformers", "no cache", 100]["seconds"]), 1)
        self.assertTrue(cells["transformers", "no cache", 100]["fewer_runs"])
        self.assertEqual(len(cells["kvist", "none", 1000]["seconds"]), 1)
        by_work = {found["work"]: found for found in result["rows"]}
        self.assertEqual(report_math.ratios(by_work["100 new tokens, paged"]), [20, 20, 20])
        worth = by_work["100 new tokens, none / paged"]
        self.assertEqual((worth["ours"], worth["theirs"]), ([4], [3]))
        self.assertEqual(report_math.verdict(by_work["1000 new tokens, paged"]), "reached")

    def test_a_peer_that_does_not_start_is_told(self):
        (self.folder / "llama-bench").write_text("#!/bin/sh\nexit 3\n")
        self.run_report("--only", "K2", "--rounds", "1", "--match", "128")
        self.assertIn("ended with 3", self.result("K2")["errors"][0])
        self.assertEqual(self.result("K2")["rows"][0]["theirs"], [])

    def test_the_last_words_of_a_peer_that_ends_are_told(self):
        with self.assertRaisesRegex(RuntimeError, "ValueError: it needs more"):
            programs.LineProgram([sys.executable, "-c", "raise ValueError('it needs more')"])

    def test_unknown_works_are_refused(self):
        with self.assertRaises(SystemExit), open(os.devnull, "w", encoding="utf-8") as nothing:
            stderr, sys.stderr = sys.stderr, nothing
            try:
                self.run_report("--only", "K9")
            finally:
                sys.stderr = stderr


class PretendedLlamaServer(http.server.BaseHTTPRequestHandler):
    """Streams as llama-server does: an event per token, then one that stops."""

    prompts = []

    def do_POST(self):  # the name is http.server's
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.prompts.append(asked["prompt"])
        self.send_response(200)
        self.end_headers()
        events = [{"content": "x", "stop": False}] * asked["n_predict"]
        for event in events + [{"stop": True, "tokens_predicted": asked["n_predict"]}]:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())

    def log_message(self, *arguments):
        pass


class ChatLoadTest(unittest.TestCase):
    def load(self, target, address, *more):
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("You are a cat.")
            file.flush()
            return programs.run_json([os.environ["CHAT_LOAD"], "--target", target, "--address",
                                      address, "--system", file.name, *more])

    def test_every_client_has_its_turns_at_a_real_server(self):
        model = ROOT / "tests/golden/tiny/llama_a.Q4_1.gguf"
        with programs.kvist_server(os.environ["KVIST_BINARY"], str(model), 1,
                                   ["--kv-memory", "16MB"]) as (_, at):
            # The tiny model's context is short: one turn.
            result = self.load("kvist", at["grpc"], "--clients", "3", "--turns", "1", "--new", "4")
        self.assertEqual(result["tokens"], 12)
        self.assertEqual(len(result["first_turn_ttft_s"]), 3)
        self.assertEqual(result["later_turns_ttft_s"], [])
        self.assertGreater(min(result["first_turn_ttft_s"]), 0)

    def test_a_turn_sends_the_conversation_so_far(self):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), PretendedLlamaServer)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        PretendedLlamaServer.prompts.clear()
        try:
            result = self.load("llama-server", f"127.0.0.1:{server.server_port}", "--clients", "1",
                               "--turns", "3", "--new", "2")
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
        self.assertEqual(result["tokens"], 6)
        self.assertEqual(len(result["later_turns_ttft_s"]), 2)
        first, second, third = PretendedLlamaServer.prompts
        self.assertTrue(first.startswith("You are a cat."))
        self.assertTrue(second.startswith(first + "xx\nUser"))
        self.assertTrue(third.startswith(second + "xx\nUser"))

    def test_nobody_there_is_a_failure(self):
        with self.assertRaises(RuntimeError):
            self.load("llama-server", f"127.0.0.1:{programs.free_port()}")


if __name__ == "__main__":
    unittest.main()
