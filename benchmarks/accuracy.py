"""Accuracy at a measured speed-up on Fashion-MNIST: hwprune against everything else.

    python -m benchmarks.accuracy [--quick] [--out FILE] [--model NAME] [--system NAME]
                                  [--seed N] [--speedup X] [--device cuda] [--until STAGE]
                                  [--precision bfloat16]
                                  [--target nvidia-h200 --dtype float16 --batch 256]

All systems start from the same dense checkpoints, get the same latency through the same compiler
(one thread, one image; with --target that of a GPU which is here, of --batch images; a file has
rows of one), the same recovery without labels and the same fine-tuning with the dense
network as teacher; acc_1, acc_3 and acc_10 are along one schedule. Width scaling trains from
scratch as long as the dense network did, and is fine-tuned then. Everything slow is kept under
.cache/accuracy and resumed from there; rows that FILE has already are not made again. Training may
go on where there is a GPU (--until dense, --until tuned); pruning and timing (--until pruned) on
the machine whose latency counts.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.accuracy_networks import FULL, QUICK, Network
from benchmarks.accuracy_peers import TAYLOR
from benchmarks.accuracy_run import Bench, Job, Row, check_device
from benchmarks.accuracy_subject import Place
from benchmarks.accuracy_summary import ACCURACIES, Key, Summary, summarise, verdicts
from benchmarks.accuracy_systems import OURS, SYSTEMS, WIDTH, share_of
from examples import fashion_mnist
from hwprune.dtype import DTYPES
from hwprune.errors import HwpruneError
from hwprune.recover.config import BFLOAT16, FLOAT32

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "accuracy"
SPEEDUPS, SEEDS = (2.0, 4.0, 1.5), (0, 1, 2)
QUICK_SYSTEMS = (OURS, TAYLOR, WIDTH)
KEY = ("model", "system", "seed", "speedup")
DENSE, PRUNED, TUNED = "dense", "pruned", "tuned"


@dataclass(frozen=True)
class Amount:
    """How many images there are for each purpose."""

    train: int = 60_000
    test: int = 10_000
    calibrate: int = 512


QUICK_AMOUNT = Amount(2_048, 1_000, 64)


def plan_jobs(
    networks: Sequence[Network],
    systems: Sequence[str],
    seeds: Sequence[int],
    speedups: Sequence[float],
) -> list[Job]:
    """Every combination, whole tables of one seed first; networks vary slowest within a seed."""
    return [
        Job(network, system, seed, speedup)
        for seed in seeds
        for network in networks
        for speedup in speedups
        for system in systems
    ]


def run(bench: Bench, jobs: Sequence[Job], until: str, out: Path | None) -> list[Row]:
    """Rows of the jobs, after those that the file has; written as they come.

    What failed is tried again, and what was only pruned goes on where more is asked.
    """
    wanted = [job.key for job in jobs]
    enough = ACCURACIES[-1] if until == TUNED else "acc_pruned"
    rows = [r for r in common.rows_of(out) if enough in r or _key(r) not in wanted]
    known = [_key(row) for row in rows]
    for number, job in enumerate(jobs, 1):
        if job.key in known:
            continue
        common.console.print(f"{number} of {len(jobs)}: {job.title}")
        try:
            row = _row(bench, job, until)
        except HwpruneError as error:
            row = job.key | {"reason": str(error)}
        if row is not None:
            rows.append(row)
            write(out, rows)
    return rows


def _row(bench: Bench, job: Job, until: str) -> Row | None:
    """As far as it goes; None before anything is pruned."""
    if until == DENSE:
        bench.dense(job.network, job.seed)
        return None
    return job.key | bench.pruned(job) if until == PRUNED else bench.tuned(job)


def _key(row: Row) -> Row:
    return {name: row[name] for name in KEY}


def write(out: Path | None, rows: Sequence[Row]) -> None:
    """The rows, and what they say of hwprune."""
    facts: dict[str, Any] = {"verdicts": verdicts(summarise(rows))}
    common.finish(out, rows, ("torch-pruning",), facts)


def show(rows: Sequence[Row]) -> None:
    """Print means and deviations by network and speed-up; then what failed, and why."""
    summaries = summarise(rows)
    common.table(
        "Fashion-MNIST: per cent right of the test images, mean over seeds; ± of the last",
        ("model", "asked", "system", "reached", *(a[4:] for a in ACCURACIES), "±", "µs", "MACs",
         "params"),
        [_cells(key, summary) for key, summary in summaries.items()],
        text=3,
    )  # fmt: skip
    for (model, speedup, system), summary in summaries.items():
        for reason in summary.reasons:
            line = f"{model}, {system}, {speedup:g}x: {reason}"
            common.console.print(line, style="yellow", markup=False)


def _cells(key: Key, summary: Summary) -> list[str]:
    model, speedup, system = key
    last = summary.values[ACCURACIES[-1]]
    return [
        model,
        f"{speedup:g}x",
        system,
        _number(summary.mean("speedup_measured"), "{:.2f}x"),
        *(_number(summary.mean(name), "{:.2f}") for name in ACCURACIES),
        _number(None if last is None else last.deviation, "{:.2f}"),
        _number(summary.mean("latency_us"), "{:.0f}"),
        *(_number(summary.mean(name), "{:.2e}") for name in ("macs", "params")),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def options_of(arguments: Sequence[str] | None = None) -> Any:
    """The command line. Every unknown name is refused before anything is trained."""
    parser = common.parser(__doc__, "one tiny network, one seed, few images, under a minute")
    names = [network.name for network in FULL]
    parser.add_argument("--model", action="append", choices=names, help="repeatable")
    parser.add_argument("--system", action="append", choices=[*SYSTEMS], help="repeatable")
    parser.add_argument("--seed", action="append", type=int, help="repeatable; 0, 1 and 2")
    parser.add_argument("--speedup", action="append", type=float, help="repeatable; 2, 4 and 1.5")
    parser.add_argument("--device", default="cpu", help="that trains")
    parser.add_argument("--precision", choices=(FLOAT32, BFLOAT16), default=FLOAT32,
                        help="that trains")  # fmt: skip
    parser.add_argument("--target", default="host", help="whose latency counts: host or a GPU")
    parser.add_argument("--dtype", choices=DTYPES, default=FLOAT32, help="that it computes in")
    parser.add_argument("--batch", type=int, default=1, help="images at once, where it is timed")
    parser.add_argument("--until", choices=(DENSE, PRUNED, TUNED), default=TUNED, help="stop there")
    parser.add_argument("--fresh", action="store_true", help="forget all that is cached")
    return parser.parse_args(arguments)


def jobs_of(options: Any) -> list[Job]:
    """What the command line asks for. Raises BudgetError for a speed-up that is none."""
    speedups = options.speedup or ((1.5,) if options.quick else SPEEDUPS)
    for speedup in speedups:
        share_of(speedup)
    networks = [n for n in FULL if options.model is None or n.name in options.model]
    return plan_jobs(
        QUICK if options.quick and not options.model else networks,
        options.system or (QUICK_SYSTEMS if options.quick else tuple(SYSTEMS)),
        options.seed or ((0,) if options.quick else SEEDS),
        speedups,
    )


def main() -> None:
    options = options_of()
    warnings.filterwarnings("ignore", category=FutureWarning, module="copyreg")  # torch's own
    try:
        jobs = jobs_of(options)
        place = Place(options.target, options.dtype, options.batch)
        if options.until != DENSE:
            place.checked()
        amount = QUICK_AMOUNT if options.quick else Amount()
        data = fashion_mnist.load("train").take(amount.train)
        test = fashion_mnist.load("t10k").take(amount.test)
        if options.fresh and CACHE.exists():
            shutil.rmtree(CACHE)
        device = check_device(options.device)
        bench = Bench(data, test, amount.calibrate, CACHE, device, options.precision, place)
        rows = run(bench, jobs, options.until, options.out)
    except (HwpruneError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
    if options.until != DENSE:
        show(rows)


if __name__ == "__main__":
    main()
