#!/usr/bin/env python3
"""Runs K1 to K8 and writes their results, a table and charts. report.sh calls it with all that it
needs in place; see README.md."""
import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys

import programs
import report_math
import works


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kvist", required=True, help="the program kvist")
    parser.add_argument("--chat-load", default="", help="the program chat_load (K5, K7)")
    parser.add_argument("--llama", default="", help="the folder of llama.cpp's programs")
    parser.add_argument("--transformers", default="", help="a Python with transformers (K1)")
    parser.add_argument("--charts", default="", help="a Python with matplotlib")
    parser.add_argument("--models", required=True, help="the folder of the model files")
    parser.add_argument("--model", choices=sorted(works.MODELS), action="append",
                        help="only this one; may be repeated")
    parser.add_argument("--results", default=pathlib.Path(__file__).parent / "results",
                        type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(works.WORKS),
                        type=lambda text: text.split(","), help="as K2,K3")
    parser.add_argument("--match", default="", help="only work whose name holds this")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=10, help="of each cell of K1")
    parser.add_argument("--budget-seconds", type=float, default=300,
                        help="a cell of K1 whose first run takes longer is run once")
    args = parser.parse_args(arguments)
    for name in args.only:
        if name not in works.WORKS:
            parser.error(f"there is no {name}; known: {', '.join(works.WORKS)}")
    if args.rounds < 1 or args.runs < 1:
        parser.error("--rounds and --runs must be at least 1")
    return args


def measure(args, name, models):
    """Runs one of the works. Its machine is described in the same run."""
    machine = programs.run_json([args.kvist, "doctor", "--threads", str(args.threads), "--output",
                                 "json"])
    setting = works.Setting(
        kvist=args.kvist, chat_load=args.chat_load, llama=args.llama,
        transformers=args.transformers, models=models, machine=machine, threads=args.threads,
        rounds=args.rounds, match=args.match, runs=args.runs, budget_seconds=args.budget_seconds)
    result = works.WORKS[name](setting)
    return {"id": name, "date": datetime.date.today().isoformat(), "rounds": args.rounds,
            "threads": args.threads, "machine": machine, **result}


def write_report(folder):
    """REPORT.md of all results and charts that lie in the folder."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("K*.json"))]
    charts = {path.stem for path in folder.glob("K*.png")}
    (folder / "REPORT.md").write_text(report_math.report(results, charts))


def main(arguments):
    args = parse(arguments)
    args.results.mkdir(parents=True, exist_ok=True)
    models = {}
    for key in args.model or works.MODELS:
        path = os.path.join(args.models, works.MODELS[key][1])
        if not os.path.exists(path):
            sys.exit(f"there is no {path}; deploy/local/model.sh {key} downloads it")
        models[key] = path
    for name in args.only:
        programs.say(f"{name}")
        result = measure(args, name, models)
        path = args.results / f"{name}.json"
        path.write_text(json.dumps(result, indent=1) + "\n")
        write_report(args.results)
        for row in result["rows"]:
            print(report_math.table_line(row), flush=True)
        for error in result.get("errors", []):
            print(f"not measured: {error}", flush=True)
    if args.charts:
        plot = pathlib.Path(__file__).parent / "plot.py"
        subprocess.run([args.charts, plot, args.results], check=True)
        write_report(args.results)


if __name__ == "__main__":
    main(sys.argv[1:])
