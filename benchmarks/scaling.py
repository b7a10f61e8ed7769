"""Row 9: samples on several processes, each with a core of its own: what they gain, and what they exchange.

Strong scaling: the same samples, divided. Weak scaling: as many samples for each process. Ranks talk through gloo
on this machine. From the seconds of one process, the bytes of each product, and the latency and bandwidth of gloo's
all-reduce follows what two processes should take, which is compared with what they take; and, with the figures of a
network in place of gloo's, what 8 and 64 would.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.harness import Outcome, Row

ROUNDS = 5
PROBLEMS = {"LeNet, N = 1,200": "lenet", "VGG-11/4, N = 128": "vgg"}
PRODUCTS = ("gradient", "Hv", "Σv, 8 columns")
NETWORK = {"seconds": 20e-6, "bytes per second": 10e9}
"""Of a network that is assumed for 8 and 64 ranks: 20 µs and 10 GB/s a rank, those of 100 Gbit/s."""


def run() -> Outcome:
    """One process and two, in turns."""
    outcome = Outcome()
    for what, name in PROBLEMS.items():
        found: dict[str, list[dict[str, Any]]] = {"one": [], "strong": [], "weak": []}
        for _ in range(ROUNDS):
            found["one"].append(timed(name, ranks=1, share=1))
            found["strong"].append(timed(name, ranks=2, share=2))
            found["weak"].append(timed(name, ranks=2, share=1))
        outcome.figures[what] = {product: _predictions(found, product) for product in PRODUCTS}
        for product in PRODUCTS:
            for side, runs in found.items():
                outcome.seconds[f"{what}: {product}, {side}"] = [each["seconds"][product] for each in runs]
            one, strong, weak = (f"{what}: {product}, {side}" for side in found)
            predicted = outcome.figures[what][product]
            outcome.compare(
                f"{what}: {product}, the same samples on two processes",
                strong,
                one,
                better="higher",
                target=1.8,
                note=f"{predicted['megabytes']:.2f} MB each way and product; predicted {predicted['2, here']:.2f}",
            )
            outcome.compare(f"{what}: {product}, twice the samples on two", weak, one, target=1.15)
            outcome.rows.append(
                Row(
                    f"{what}: {product}, predicted",
                    "64 processes",
                    "one",
                    predicted["64, on a network"],
                    "higher",
                    note=f"8 processes: {predicted['8, on a network']:.1f}; at 20 µs and 10 GB/s",
                )
            )
    return outcome


def timed(name: str, *, ranks: int, share: int) -> dict[str, Any]:
    """What rank 0 of a run found; it holds one part in ``share`` of the problem's samples."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        done = subprocess.run(
            [*command, "-m", "benchmarks.scaling_ranks", name, str(share), str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"{name} on {ranks} processes failed: {done.stderr[-2000:]}")
        return json.loads(out.read_text())  # type: ignore[no-any-return]


def _predictions(found: dict[str, list[dict[str, Any]]], product: str) -> dict[str, float]:
    """Speed-ups by t(W) = t(1)/W + Σ over collectives of (latency + bytes on the wire/bandwidth)."""
    alone = statistics.median(each["seconds"][product] for each in found["one"])
    exchanged = found["strong"][0]["exchanged"][product]
    here = {
        "seconds": statistics.median(each["latency"] for each in found["strong"]),
        "bytes per second": statistics.median(each["bandwidth"] for each in found["strong"]),
    }

    def speed_up(ranks: int, network: dict[str, float]) -> float:
        # a ring sends each number twice but for the rank's own part
        wire = 2 * (ranks - 1) / ranks * exchanged["bytes"] / network["bytes per second"]
        return alone / (alone / ranks + exchanged["collectives"] * network["seconds"] + wire)

    return {
        "megabytes": exchanged["bytes"] / 1e6,
        "collectives": exchanged["collectives"],
        "latency here": here["seconds"],
        "bandwidth here": here["bytes per second"],
        "2, here": speed_up(2, here),
        **{f"{ranks}, on a network": speed_up(ranks, NETWORK) for ranks in (2, 8, 64)},
    }
