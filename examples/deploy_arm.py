"""Run an artifact on a picture, on the board: needs apache-tvm, NumPy, Pillow, hwprune, no torch.

    python deploy_arm.py ARTIFACT IMAGE [--labels FILE] [--repeats 50]

Prints the classes that the network finds likeliest and, with --repeats, how long an inference
takes here. `--mean`, `--std` and `--crop` are those with which the network was trained.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from hwprune.deploy import Artifact, load
from hwprune.errors import HwpruneError


def pixels(path: Path, artifact: Artifact, mean: float, std: float, crop: float) -> np.ndarray:
    """A picture as the artifact's input: float32 (1, C, H, W), the middle of it, scaled."""
    batch, channels, height, width = artifact.manifest.inputs[0].shape
    image = Image.open(path).convert("L" if channels == 1 else "RGB")
    scale = max(height / image.height, width / image.width) / crop
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    image = image.resize(size, Image.Resampling.BICUBIC)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    image = image.crop((left, top, left + width, top + height))
    values = np.asarray(image, np.float32).reshape(height, width, channels) / 255.0
    values = ((values - mean) / std).transpose(2, 0, 1)
    return np.repeat(values[None].astype(np.float32), batch, axis=0)


def likeliest(scores: np.ndarray, count: int) -> list[tuple[int, float]]:
    """The `count` classes with the highest scores, and their softmax probabilities."""
    shifted = np.exp(scores.astype(np.float64) - scores.max())
    order = np.argsort(-shifted)[:count]
    return [(int(i), float(shifted[i] / shifted.sum())) for i in order]


def main(argv: list[str] | None = None) -> None:
    """Read the arguments, run, print."""
    parser = argparse.ArgumentParser(description="Run an artifact on a picture.")
    parser.add_argument("artifact", type=Path)
    parser.add_argument("image", type=Path)
    parser.add_argument("--labels", type=Path, help="a text file, one class a line")
    parser.add_argument("--top", type=int, default=5, help="how many classes to print")
    parser.add_argument("--repeats", type=int, default=0, help="inferences to time")
    parser.add_argument("--mean", type=float, default=0.5)
    parser.add_argument("--std", type=float, default=0.5)
    parser.add_argument("--crop", type=float, default=0.875, help="of the shorter side")
    args = parser.parse_args(argv)
    try:
        artifact = load(args.artifact)
        x = pixels(args.image, artifact, args.mean, args.std, args.crop)
        result = artifact(x)
        names = args.labels.read_text().splitlines() if args.labels else []
    except (HwpruneError, OSError, UnidentifiedImageError) as error:
        sys.exit(f"error: {error}")
    scores = (result[0] if isinstance(result, tuple) else result)[0]
    for number, share in likeliest(scores, args.top):
        name = names[number] if number < len(names) else f"class {number}"
        print(f"{100 * share:5.1f} %  {name}")
    if args.repeats > 0:
        times = np.array(artifact.latencies_us(args.repeats)) / 1000
        low, median, high = np.quantile(times, (0.1, 0.5, 0.9))
        print(f"{median:.2f} ms (10 % to 90 %: {low:.2f} to {high:.2f}), {args.repeats} inferences")


if __name__ == "__main__":
    main()
