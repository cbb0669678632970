#!/usr/bin/env python3
"""Stands in for the program kvist where scripts are tested: same flags and output, no model.

Each process writes its id and arguments into the folder FAKE_KVIST_DIR. FAKE_KVIST_FAULT makes one
thing go wrong: no-start (a server ends at once), deaf (a server ignores SIGTERM), differs (output
depends on the cache), slow (generate does not come to an end).
"""

import http.server
import json
import os
import pathlib
import signal
import sys
import threading

FAULT = os.environ.get("FAKE_KVIST_FAULT", "")


def flag(name, default=None):
    return sys.argv[sys.argv.index(name) + 1] if name in sys.argv else default


class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/readyz", "/healthz") else 404)
        self.end_headers()

    def log_message(self, *_):
        pass


def listen(address):
    host, port = address.rsplit(":", 1)
    server = http.server.ThreadingHTTPServer((host, int(port)), Ready)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"{host}:{server.server_address[1]}"


def serve(role):
    if FAULT == "no-start":
        sys.exit("kvist: the model file is damaged")
    signal.signal(signal.SIGTERM, signal.SIG_IGN if FAULT == "deaf" else lambda *_: sys.exit(0))
    signal.signal(signal.SIGINT, lambda *_: sys.exit(0))
    names = {"grpc": "--grpc", "http": "--http", "metrics": "--metrics"}
    addresses = {name: listen(flag(option)) for name, option in names.items() if option in sys.argv}
    print(f"{role} starts", flush=True)
    print("kvist ready", *(f"{name}={address}" for name, address in addresses.items()), flush=True)
    while True:
        signal.pause()


def generate():
    if FAULT == "slow":
        signal.pause()
    print("Once there was a red cat.", file=sys.stderr)
    ids = [1, 2, 3]
    if FAULT == "differs" and flag("--cache") == "none":
        ids = [1, 2, 4]
    timings = {
        "time_to_first_token_ms": 12.5,
        "prefill_tokens_per_second": 300.0,
        "decode_tokens_per_second": 45.678,
    }
    answer = {"text": "Once", "token_ids": ids, "finish_reason": "length", "prompt_tokens": 31}
    print(json.dumps({**answer, "cached_tokens": 16, "timings": timings, "session": "s-1"}))


def main():
    folder = pathlib.Path(os.environ["FAKE_KVIST_DIR"])
    (folder / f"{os.getpid()}.process").write_text(" ".join(sys.argv[1:]))
    command = sys.argv[1]
    if command == "generate":
        generate()
    elif command == "sessions":
        print("session s-1: 3 blocks")
    else:
        serve(command)


if __name__ == "__main__":
    main()
