"""Binarised MNIST and CIFAR-10 at ten steps on a GPU, in pieces: run it again until it says that it is done.

    GOALGEN_DATA=... python benchmarks/large.py mnist --piece 500
    GOALGEN_DATA=... python benchmarks/large.py cifar10 --piece 500
    GOALGEN_DATA=... python benchmarks/large.py mnist --small --total 60     # a CPU, to see that it works

Each call trains for at most --piece seconds, resuming where the last one stopped, and measures once --total seconds of
training are over.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time

from common import RUNS, data_folder, goalgen, public, read, run, write

TOTAL = {"mnist": 1500.0, "cifar10": 7200.0}
SMALL = ["--width", "16", "--depth", "1", "--horizon", "4", "--batch-size", "32", "--precision", "no", "--eval-every", "20",
         "--limit", "2000", "--kl-warmup-steps", "50"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(TOTAL))
    parser.add_argument("--total", type=float, help="seconds of training, over all pieces")
    parser.add_argument("--piece", type=float, default=500.0, help="seconds of this call's training")
    parser.add_argument("--out", help="folder of the run")
    parser.add_argument("--device", default="cuda", help="for the measurement")
    parser.add_argument("--small", action="store_true", help="a model for a CPU")
    options = parser.parse_args()
    total = options.total or TOTAL[options.data]
    out = RUNS / (f"large-{options.data}" + ("-small" if options.small else "")) if not options.out else options.out
    command = ["train", "--preset", options.data, "--data", data_folder(options.data), "--out", str(out), "--quiet"]
    command += ["--max-seconds", str(total), *(SMALL if options.small else [])]
    threads = 2 if options.small else 8
    process = goalgen(command, threads)
    end = time.monotonic() + options.piece
    while process.poll() is None and time.monotonic() < end:
        time.sleep(1)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)  # saves at the next step
    status = process.wait()
    if status == 130:
        print("stopped in the middle; the same command goes on from here")
        return
    if status:
        sys.exit("training failed")
    file = f"{out}/evaluation.json"
    device = "cpu" if options.small else options.device
    extra = ["--num-test", "500", "--iw-images", "20", "--features", "pixel-pca"] if options.small else []
    run(["evaluate", str(out), "--json", file, "--device", device, *extra], threads)
    with open(file, encoding="utf-8") as stream:
        numbers = json.load(stream)
    print(f"{numbers['nll_bound_nats']:.2f} nats, {numbers['bits_per_dim']:.3f} bits/dim (equation 3)")
    if not options.small:
        name = f"large_{options.data}"
        write(name, {**read(name), "rows": [{**numbers, "seconds": total, "command": public(command)}]})
    print("done")


if __name__ == "__main__":
    main()
