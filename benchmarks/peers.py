"""The job beside what a user would build instead, with the same model on the same images, in paired rounds.

pip install -c constraints.txt -e '.[bench]'
python -m benchmarks.peers [--images 2000] [--rounds 3] [--arms ray daft datasets loader]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks import archive, arms

NAMES = {
    "conservator": "`conservator restore`",
    "loop": "a loop in one process",
    "ray": "a plain Ray Data script",
    "daft": "Daft",
    "datasets": "Hugging Face `datasets.map`",
    "loader": "a torch DataLoader",
}


def compare(names: list[str], images: int, rounds: int, folder: Path) -> dict[str, list[arms.Measured]]:
    """Every arm once a round, another one first each time; those of a round are compared with each other."""
    source = folder / "source"
    archive.build(source, images, max(1, images // 250))
    measured: dict[str, list[arms.Measured]] = {name: [] for name in ("conservator", *names)}
    for number in range(rounds):
        turn = number % len(measured)
        for name in [*measured][turn:] + [*measured][:turn]:
            measured[name].append(arms.run(name, source, folder / "run"))
            sys.stderr.write(f"round {number + 1}: {name} {measured[name][-1]}\n")
    return measured


def table(measured: dict[str, list[arms.Measured]]) -> list[str]:
    """Markdown: medians over the rounds, and the median of the job's share of each in the same round."""
    lines = ["| | MP/s, steady | the job's share | first rows after, s | in all, s |", "|---|---|---|---|---|"]
    for name, found in measured.items():
        pairs = zip(measured["conservator"], found, strict=True)
        share = statistics.median(ours["speed"] / theirs["speed"] for ours, theirs in pairs)
        medians = [statistics.median(one[key] for one in found) for key in ("speed", "first", "seconds")]
        lines.append(f"| {NAMES[name]} | {medians[0]:.3f} | {share:.3f} | {medians[1]:.1f} | {medians[2]:.0f} |")
    return lines


def main() -> None:
    """Measure, and print Markdown and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--arms", nargs="+", default=["ray", "daft", "datasets", "loader"], choices=list(arms.ARMS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = compare(options.arms, options.images, options.rounds, Path(folder))
    sys.stdout.write("\n".join(table(measured)) + "\n\n" + json.dumps(measured) + "\n")


if __name__ == "__main__":
    main()
