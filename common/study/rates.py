"""How fast the loops run on this machine, and where the time of our step goes."""
from collections.abc import Iterator
from functools import partial
from statistics import fmean, median

import torch

from common.errors import reason
from common.files import Json
from common.study.cost import timed
from common.study.loops import Case, our_data, our_train, plain_data, plain_train

VARIANTS = {
    "train plain": plain_train,
    "train ours eager": our_train,
    "train ours captured": partial(our_train, way="captured"),
    "train ours compiled": partial(our_train, way="compiled"),
    "data plain": plain_data,
    "data ours": our_data,
}
LINE = (
    "  {variant:<22}{images_per_s:>11,.0f} images/s{ratio_to_plain:>8.2f} x plain"
    "{cold_seconds:>8.2f} s cold"
)
PROFILED_STEPS = 10


def pace(steps: Iterator, seconds: float) -> float:
    """Seconds a step over about `seconds`, the first two not counted."""
    timed(steps.__next__, 2)
    blocks = []
    # Ten steps a block: reading the clock waits for the device.
    while sum(blocks) < seconds / 10:
        blocks.append(timed(steps.__next__, 10))
    return fmean(blocks)


def rates(case: Case, compiled: bool, turns: int, seconds: float) -> list[Json]:
    """Images/s of every variant that this machine can run, printed as a table.

    Variants take turns, so that a machine that slows down slows all; figures are medians over them.
    """
    left_out = {"train ours captured": not case.cuda, "train ours compiled": not compiled}
    print(f"\n{case}")
    running, results = {}, {}
    for label, make in VARIANTS.items():
        if left_out.get(label):
            continue
        steps = make(case)
        try:
            cold = timed(steps.__next__)
        except Exception as error:  # a variant that this machine cannot run is a result, too
            print(f"  {label}: not measured ({reason(error)})")
            continue
        running[label] = steps
        results[label] = {**case.about, "variant": label, "samples": [], "cold_seconds": cold}
    for _ in range(turns):
        for label, steps in running.items():
            results[label]["samples"].append(case.recipe.batch_size / pace(steps, seconds))
    for label, one in results.items():
        one["images_per_s"] = median(one["samples"])
        plain = results[label.split()[0] + " plain"]  # comes before ours
        one["ratio_to_plain"] = one["images_per_s"] / plain["images_per_s"]
        print(LINE.format(**one), flush=True)
    return list(results.values())


def profile(case: Case) -> Json:
    """The table of where our step's time goes: by kernel on a GPU, captured if it can be,
    and by operator on a CPU."""
    steps = our_train(case, "captured")
    timed(steps.__next__, 3)  # warm
    kind = case.device.type
    activity = getattr(torch.profiler.ProfilerActivity, kind.upper())
    with torch.profiler.profile(activities=[activity], acc_events=True) as trace:
        step = timed(steps.__next__, PROFILED_STEPS)
    table = trace.key_averages().table(f"self_{kind}_time_total", 15, max_name_column_width=60)
    print(f"\n{case}: {1e3 * step:.2f} ms a step under the profiler, {PROFILED_STEPS} steps")
    print(table)
    return {**case.about, "step_seconds": step, "steps": PROFILED_STEPS,
            "table": table.splitlines()}
