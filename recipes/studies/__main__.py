"""Runs a study: trains what has not been trained yet, then writes its table and its figure.

    python -m recipes.studies                    lists the studies
    python -m recipes.studies linear_scaling     runs one

The table goes into the study's README, the figure beside it. An interrupted study continues where it stopped.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
from pathlib import Path

from recipes.studies.trials import read_trials, run_trials

FOLDER = Path(__file__).parent
BEGIN, END = "<!-- written by the command, from here -->", "<!-- to here -->"


def main(argv: list[str] | None = None) -> int:
    """Runs the study named on the command line; returns the exit code."""
    names = sorted(path.parent.name for path in FOLDER.glob("*/study.yaml"))
    parser = argparse.ArgumentParser(
        prog="python -m recipes.studies", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path("study-runs"),
        metavar="FOLDER",
        help="folder of the trainings; a finished one is not trained again (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="write table.md and figure.png there instead")
    options = parser.parse_args(argv)
    if options.name is None:
        for name in names:
            print(
                f"{name:16s} {(FOLDER / name / 'README.md').read_text(encoding='utf-8').splitlines()[0].lstrip('# ')}"
            )
        return 0
    if options.name not in names:
        near = difflib.get_close_matches(options.name, names, 1)
        guess = f" (did you mean {near[0]}?)" if near else ""
        print(f"error: no study {options.name!r}{guess}; there are {', '.join(names)}", file=sys.stderr)
        return 2
    try:
        results = run_trials(read_trials(FOLDER / options.name / "study.yaml"), options.cache.absolute())
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues with the training that was interrupted", file=sys.stderr)
        return 130
    analysis = importlib.import_module(f"recipes.studies.{options.name}.analysis")
    text = analysis.tables(results)
    output = options.output or FOLDER / options.name
    output.mkdir(parents=True, exist_ok=True)
    analysis.figure(results).savefig(output / "figure.png", dpi=90)
    if options.output is None:
        write_table(output / "README.md", text)
    else:
        (output / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}\nwritten to {output}")
    return 0


def write_table(readme: Path, text: str) -> None:
    """Replaces what stands between the two marks of a README."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{BEGIN}\n\n{text}\n![Measured curves](figure.png)\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
