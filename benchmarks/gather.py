"""Runs the benchmarks and writes ``benchmarks/RESULTS.md``: ``make bench``.

Each runs in a process of its own, one after the other, so that none disturbs another. The file
holds every line that they print about what they measured, with machine, date and command, and ends
with what is written in ``benchmarks/NOTES.md``.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# In the order of the table. Sizes are those that a small machine finishes.
COMMANDS: dict[str, tuple[str, ...]] = {
    "startup": (),
    "loss": (),
    "decode": (),
    "feature_cache": (),
    "cache_accuracy": (),
    "prefix": (),
    "loader": (),
    "train_loop": (),
    "compile": ("--rounds", "3"),
    "predict": (),
    "shards": (),
    "ddp": (),
    "prepare": (),
    "geocells": ("--points", "90515"),
    "split": ("--points", "90515"),
    "collect": (),
    "yfcc_filter": (),
}
_FIELDS = ("name", "value", "limit", "ratio", "target", "holds")
_LIBRARIES = ("torch", "lightning", "timm", "open_clip_torch", "simplejpeg", "pillow")


def processor() -> str:
    """Name of the processor, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def accelerator() -> str:
    """Name of the GPU, or that there is none."""
    import torch

    if not torch.cuda.is_available():
        return "no GPU"
    return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"


def run(name: str, arguments: tuple[str, ...]) -> tuple[list[dict[str, Any]], str]:
    """The conclusions of a benchmark, and what went wrong."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *arguments]
    print(f"\n$ python -m benchmarks.{name} {' '.join(arguments)}", flush=True)
    lines = []
    with subprocess.Popen(
        command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        tail: list[str] = []
        for text in process.stdout:
            print(text, end="", flush=True)
            tail = [*tail[-4:], text.strip()]
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and set(_FIELDS) <= line.keys() and line not in lines:
                lines.append(line)
    return lines, "" if process.returncode == 0 else " ".join(tail)


def page(found: dict[str, tuple[list[dict[str, Any]], str, str]], notes: str) -> str:
    """The text of ``RESULTS.md``."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in _LIBRARIES)
    parts = [
        "# Benchmarks\n",
        "Made by `make bench`. A ratio is taken to a limit or to a peer of the same run; more is "
        "better, and a claim holds from its target on. Absolute times of a machine that others "
        "share mean little.\n",
        f"- Machine: {processor()}, {os.cpu_count()} cores, {accelerator()}",
        f"- Python {platform.python_version()}; {versions}\n",
        "| benchmark | case | value | limit | ratio | target | holds |",
        "|---|---|---|---|---|---|---|",
    ]
    details = ["\n## Commands and details\n"]
    for name, (lines, problem, date) in found.items():
        command = f"python -m benchmarks.{' '.join((name, *COMMANDS[name]))}"
        details.append(f"### {name}\n`{command}`, {date}\n")
        if problem or not lines:
            parts.append(f"| {name} | failed | | | | | **no** |")
            details.append(f"It failed: {problem or 'it printed no result'}\n")
        for line in lines:
            holds = "yes" if line["holds"] else "**no**"
            unit = f" {line['unit']}" if line.get("unit") else ""
            case = str(line.get("case", "")) + "".join(
                f"; {key} {line[key]}" for key in ("model", "files", "batch") if line.get(key)
            )
            own = str(line["name"]).startswith(name)
            title = line["name"] if own else f"{name}: {line['name']}"
            parts.append(
                f"| {title} | {case.removeprefix('; ')} | {line['value']:g}{unit} | "
                f"{line['limit']:g}{unit} | {line['ratio']:g} | {line['target']:g} | {holds} |"
            )
            details.append(f"```json\n{json.dumps(line, ensure_ascii=False)}\n```")
        details.append("")
    return "\n".join([*parts, "", notes.strip(), *details]).rstrip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"some of: {', '.join(COMMANDS)}; default: all")
    args = parser.parse_args()
    unknown = set(args.names) - COMMANDS.keys()
    if unknown:
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    store = HERE / "results.json"
    # What was measured before stays, with its date, until it is measured again.
    found: dict[str, Any] = json.loads(store.read_text("utf-8")) if store.is_file() else {}
    for name in args.names or COMMANDS:
        lines, problem = run(name, COMMANDS[name])
        found[name] = (lines, problem, datetime.date.today().isoformat())
        ordered = {key: found[key] for key in COMMANDS if key in found}
        store.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", "utf-8")
        notes = (HERE / "NOTES.md").read_text(encoding="utf-8")
        (HERE / "RESULTS.md").write_text(page(ordered, notes), encoding="utf-8")
    print(f"\n{HERE / 'RESULTS.md'}")


if __name__ == "__main__":
    main()
