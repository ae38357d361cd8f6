"""How fast the loops run on this machine, and where the time of our step goes."""
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from common.errors import reason
from common.files import Json
from common.study import loops
from common.study.loops import Case

VARIANTS = {
    "train plain": loops.plain_train,
    "train ours eager": loops.our_train,
    "train ours captured": partial(loops.our_train, capture=True),
    "train ours compiled": partial(loops.our_train, compiled=True),
    "data plain": loops.plain_data,
    "data ours": loops.our_data,
}
PROFILED_STEPS = 10


def timed(work: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds that `work` takes, the mean of `repeats`, from idle device to idle device."""
    sync = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    sync()
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    sync()
    return (time.perf_counter() - started) / repeats


def pace(steps: Iterator, seconds: float) -> float:
    """Seconds a step over about `seconds`, the first two not counted."""
    next(steps)
    next(steps)
    blocks: list[float] = []
    # Ten steps a block: reading the clock waits for the device.
    while sum(blocks) < seconds / 10:
        blocks.append(timed(lambda: next(steps), 10))
    return statistics.mean(blocks)


def rates(case: Case, compiled: bool, turns: int, seconds: float) -> list[Json]:
    """Images/s of every variant that this machine can run, printed as a table.

    Variants take turns, so that a machine that slows down slows all; figures are medians
    over the turns."""
    tried = {"captured": case.cuda, "compiled": compiled}
    print(f"\n{case}")
    running: dict[str, Iterator] = {}
    samples: dict[str, list[float]] = {}
    cold: dict[str, float] = {}
    for label, make in VARIANTS.items():
        if not tried.get(label.split()[-1], True):
            continue
        try:
            steps = make(case)
            cold[label] = timed(lambda: next(steps))
        except Exception as error:  # a variant that this machine cannot run is a result, too
            print(f"  {label}: not measured ({reason(error)})")
            continue
        running[label], samples[label] = steps, []
    for _ in range(turns):
        for label, steps in running.items():
            samples[label].append(case.recipe.batch_size / pace(steps, seconds))
    medians = {label: statistics.median(taken) for label, taken in samples.items()}
    results = []
    for label, rate in medians.items():
        ratio = rate / medians[label.split()[0] + " plain"]
        figures = f"{rate:>11,.0f} images/s{ratio:>8.2f} x plain{cold[label]:>8.2f} s cold"
        print(f"  {label:<22}{figures}", flush=True)
        results.append({
            **case.about, "variant": label, "images_per_s": rate, "samples": samples[label],
            "ratio_to_plain": ratio, "cold_seconds": cold[label],
        })
    return results


def profile(case: Case) -> Json:
    """The table of where our step's time goes: by kernel on a GPU, captured if it can be,
    and by operator on a CPU."""
    steps = loops.our_train(case, capture=case.cuda)
    for _ in range(3):
        next(steps)
    activity = "CUDA" if case.cuda else "CPU"
    activities = [getattr(torch.profiler.ProfilerActivity, activity)]
    with torch.profiler.profile(activities=activities, acc_events=True) as trace:
        step = timed(lambda: next(steps), PROFILED_STEPS)
    order = "self_device_time_total" if case.cuda else "self_cpu_time_total"
    table = trace.key_averages().table(order, row_limit=15, max_name_column_width=60)
    lines = table.splitlines()
    print(f"\n{case}: {1e3 * step:.2f} ms a step under the profiler, {PROFILED_STEPS} steps")
    print(table)
    return {**case.about, "step_seconds": step, "steps": PROFILED_STEPS, "table": lines}
