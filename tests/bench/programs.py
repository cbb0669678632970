"""Programs that the benchmarks run: commands that print JSON, servers, a busy neighbour."""
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

START_SECONDS = 180
COMMAND_SECONDS = 3600


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(command):
    """Standard output of a command. RuntimeError with the end of its stderr if it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=COMMAND_SECONDS, check=False)
    if done.returncode != 0:
        tail = done.stderr.strip().splitlines()[-3:]
        raise RuntimeError(f"{os.path.basename(command[0])} ended with {done.returncode}: "
                           + " / ".join(tail))
    return done.stdout


def run_json(command):
    return json.loads(run(command))


def seconds_of(command):
    """Wall seconds of a whole process."""
    start = time.perf_counter()
    run(command)
    return time.perf_counter() - start


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def resident_bytes(pid):
    with open(f"/proc/{pid}/status", encoding="utf-8") as file:
        for line in file:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    raise RuntimeError(f"process {pid} has no VmRSS")


@contextlib.contextmanager
def process(command, **options):
    """Runs a command and ends it at the end."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@contextlib.contextmanager
def busy_neighbour():
    """A process that computes for as long as the block runs."""
    with process([sys.executable, "-c", "while True: pass"]):
        yield


@contextlib.contextmanager
def kvist_server(kvist, model, threads, more=()):
    """Yields (process, {"grpc": address, "metrics": address}) of `kvist serve` once it is ready."""
    with tempfile.TemporaryDirectory() as folder:
        command = [kvist, "serve", "--model", model, "--threads", str(threads), "--data-dir",
                   folder, "--grpc", "127.0.0.1:0", "--metrics", "127.0.0.1:0", *more]
        with process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                     text=True) as child:
            line = child.stdout.readline()
            if not line.startswith("kvist ready "):
                raise RuntimeError("kvist serve did not become ready")
            yield child, dict(word.split("=", 1) for word in line.split() if "=" in word)


def http_get(url, timeout=10):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def llama_server_command(peer, model, threads, slots, context):
    return [os.path.join(peer, "llama-server"), "-m", model, "-t", str(threads), "-np", str(slots),
            "-c", str(context), "--kv-unified", "--host", "127.0.0.1"]


@contextlib.contextmanager
def llama_server(command):
    """Yields (process, address) of `llama-server` once its /health says that it is ready."""
    address = f"127.0.0.1:{free_port()}"
    command = command + ["--port", address.rsplit(":", 1)[1]]
    with process(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                http_get(f"http://{address}/health")
                break
            except (urllib.error.URLError, OSError):
                if child.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError("llama-server did not become ready") from None
                time.sleep(0.1)
        yield child, address


class LineProgram:
    """A program that answers each line of JSON with one: the peer transformers."""

    def __init__(self, command):
        self._errors = tempfile.TemporaryFile("w+")
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       stderr=self._errors, text=True, bufsize=1)
        self.ready = self._read()

    def _read(self):
        line = self._child.stdout.readline()
        if not line:
            self._errors.seek(0)
            said = self._errors.read().split("\n")
            last = next((line for line in reversed(said) if line.strip()), "nothing")
            self.close()
            raise RuntimeError(f"the program ended without an answer; its last words: {last}")
        return json.loads(line)

    def ask(self, request):
        self._child.stdin.write(json.dumps(request) + "\n")
        self._child.stdin.flush()
        return self._read()

    def close(self):
        self._child.stdin.close()
        self._child.terminate()
        self._child.wait()
        self._child.stdout.close()
        self._errors.close()
