"""The main job: the pretrained EfficientNet-Lite0, pruned to half its latency on this machine.

Run as `python -m examples.demo`. It writes the artifact, with report.html, to `demo/`.
"""

from __future__ import annotations

import argparse
import warnings

from rich.console import Console

import hwprune
from examples import models, photos
from hwprune.progress import rich_progress
from hwprune.report import print_report


def main() -> None:
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's own
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", default="50%")
    parser.add_argument("--out", default="demo")
    parser.add_argument("--images", type=int, default=96)
    options = parser.parse_args()
    images = photos.calibration(options.images)
    if not len(images):
        Console(stderr=True).print("no photos found: recovery is left out (see README)")
    with rich_progress() as progress:
        result, _ = hwprune.compile_pruned(
            models.efficientnet_lite0(),
            (models.example_input("efficientnet_lite0"),),
            out=options.out,
            latency=options.latency,
            calibrate=images if len(images) else None,
            progress=progress,
            name="EfficientNet-Lite0",
        )
    print_report(result.report, Console())
    Console().print(f"Artifact in {options.out}/; open {options.out}/report.html")


if __name__ == "__main__":
    main()
