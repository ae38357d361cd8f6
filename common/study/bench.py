"""Our training core against a plain loop, in one run, on whatever machine this is.

    python -m common.study.bench                     # every network, every variant that this machine can run
    python -m common.study.bench --quick --json FILE # fewer steps and repeats
    python -m common.study.bench --models efficientnet_b2 --batch-sizes 125 500 1000
    python -m common.study.bench --parts trajectory  # does ours learn as the plain loop does? losses of both from the same weights
    python -m common.study.bench --parts profile     # where the time of our step goes, kernel by kernel

*plain* is the loop of most tutorials: PIL images in a DataLoader with workers, torchvision transforms, eager fp32 and, for
B2, the package as it comes; *plain+amp* adds autocast and channels_last on a GPU. *ours* is `TrainStep`, eager,
captured as a CUDA graph, or compiled and captured. Variants take turns, so that a machine that slows down slows all;
figures are medians over the turns with their range. On a CPU both keep freed memory, as `runtime.set_up` says. *Cold* is
the time from nothing to the end of the first step; the first variant of a session also loads the device's libraries.
"""
import argparse
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any


from common.config import Parser, Runtime, add_flags, collect, option
from common.data.augment import Augmentation
from common.data.sources import CLASSES
from common.data.splits import make_splits
from common.data.synthetic import draw
from common.errors import InputError, run_script
from common.models.build import build
from common.training.graph import captured_forward, eager_forward
from common.training.step import Preprocess, TrainStep, epoch_order, make_optimizer, seed_epoch

MODELS = {"simple_cnn": 1, "improved_cnn": 1, "se_resnet18": 1, "efficientnet_b2": 2}  # name → resize
PARTS = ("rates", "trajectory", "profile")
PROFILED_STEPS = 10
IMAGES = 10_000  # drawn ones: speed does not depend on what they show


@dataclass(frozen=True)
class Options:
    """What to measure and where to write it."""

    quick: bool = option(False, "two short turns in place of five", "bench")
    json: str | None = option(None, "write all figures, raw samples included, to this file", "bench")
    compile: bool = option(False, "measure torch.compile too (on a CPU B2 takes minutes to compile)", "bench")


def main() -> int:
    """Measure what the command line asks for; 0."""
    parser = Parser(prog="python -m common.study.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, Options())
    add_flags(parser, Runtime(), ("device", "amp"))
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), help="networks (default: all)")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["rates"], help="rates of every variant, trajectory: the losses of plain and ours, "
                        "profile: kernels of our step (default: rates)")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=None, metavar="N", help="default: 125, and on a GPU 500 and 1000 too")
    given = parser.parse_args()
    options, runtime = collect(given, Options()), collect(given, Runtime())
    return _Bench(options, runtime).run(given.models, given.batch_sizes, given.parts)


class _Bench:
    """One measuring session: the device, a drawn data set, and the results so far."""

    def __init__(self, options: Options, runtime: Runtime) -> None:
        import torch

        from common.training import runtime as rt

        self.options, self.device, self.torch = options, rt.set_up(runtime, seed=0), torch
        self.cuda, self.amp = self.device.type == "cuda", None
        self.precision_of = rt.precision
        self.pick_amp = lambda name: rt.amp_dtype(runtime, self.device, name)
        self.turns, self.seconds = (2, 1.0) if options.quick else (5, 2.0 if self.cuda else 4.0)
        self.learning = (3, 60) if options.quick else (5, 180)  # seeds and steps of a trajectory
        drawn = draw(IMAGES // 10, seed=0)
        splits = make_splits(*drawn, *draw(50, seed=1), tuple(CLASSES), "synthetic", val_size=1000)
        self.arrays = splits.train.images.permute(0, 2, 3, 1).numpy(), splits.train.labels.numpy()  # of the plain loop: PIL takes (H, W, 3)
        self.splits = splits.to(self.device)
        self.report: dict[str, Any] = {"environment": rt.environment(self.device), "machine": {}, "results": [], "trajectories": [], "profiles": []}

    def sync(self) -> None:
        """Wait for the device, so that a clock read after it counts finished work."""
        if self.cuda:
            self.torch.cuda.synchronize()

    def machine(self) -> dict[str, float]:
        """Measured peaks: matrix-product FLOP/s in the training dtype, and bytes/s of a large copy, read and written."""
        torch, n = self.torch, 8192 if self.cuda else 2048
        a = torch.randn(n, n, device=self.device, dtype=self.amp or torch.float32)
        source = torch.empty(2**30 if self.cuda else 2**28, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return {"flops_per_s": 2 * n**3 / self.best(lambda: a @ a), "bytes_per_s": 2 * source.numel() / self.best(lambda: target.copy_(source))}

    def best(self, work: Callable[[], Any], repeats: int = 7) -> float:
        """Shortest time of `work` in seconds, after two runs that do not count."""
        times = []
        for _ in range(repeats + 2):
            self.sync()
            start = time.perf_counter()
            work()
            self.sync()
            times.append(time.perf_counter() - start)
        return min(times[2:])

    def run(self, names: list[str], batch_sizes: list[int] | None, parts: Sequence[str] = ("rates",)) -> int:
        """Measure and print; 0."""
        if self.options.json:
            folder = Path(self.options.json).resolve().parent
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):  # found before minutes of measuring
                raise InputError(f"--json {self.options.json}: {folder} cannot be written; choose another place")
        env = self.report["environment"]
        print(f"{env['hardware']}, torch {env['torch']}")
        for name in names:
            for batch_size in batch_sizes or ([125, 500, 1000] if self.cuda else [125]):
                if "rates" in parts:
                    self.case(name, batch_size)
                if "profile" in parts:
                    self.profile(name, batch_size)
            if "trajectory" in parts:
                self.trajectory(name)
        if self.options.json:
            from common.files import write_json

            write_json(Path(self.options.json), self.report)
        return 0

    def case(self, name: str, batch_size: int) -> None:
        """All variants of one network at one batch size."""
        recipe, self.amp = self.recipe(name, batch_size), self.pick_amp(name)
        precision = self.precision_of(self.amp)
        machines = self.report["machine"]
        if precision not in machines:
            machines[precision] = self.machine()
        machine = machines[precision]
        bound = self.bound(name, recipe, machine)
        print(f"\n{name}, batch {batch_size}, {32 * recipe.resize} px, ours in {precision} (matrix product {machine['flops_per_s'] / 1e12:.2f} TFLOP/s, "
              f"copy {machine['bytes_per_s'] / 1e9:.0f} GB/s); bound {bound['images_per_s']:,.0f} img/s "
              f"({bound['flops'] / 1e9:.3f} GFLOP and {bound['bytes'] / 1e6:.1f} MB an image)", flush=True)
        variants: dict[str, Iterator] = {}
        cold, memory = {}, {}
        for label, make in self.variants(recipe).items():
            held = 0
            if self.cuda:
                self.torch.cuda.reset_peak_memory_stats()
                held = self.torch.cuda.memory_allocated()  # by the variants before, which all stay alive
            start = time.perf_counter()
            try:
                variants[label] = make()
                next(variants[label])
                self.sync()
            except Exception as error:  # a variant that this machine cannot run is a result, too
                print(f"  {label}: not measured ({str(error).splitlines()[0][:120]})")
                variants.pop(label, None)
                continue
            cold[label] = time.perf_counter() - start
            memory[label] = self.torch.cuda.max_memory_allocated() - held if self.cuda else None
        rates: dict[str, list[float]] = {label: [] for label in variants}
        for _ in range(self.turns):
            for label, steps in variants.items():
                rates[label].append(batch_size / self.pace(steps))
        plain = {kind: statistics.median(rates[f"{kind} plain"]) for kind in ("train", "data", "eval")}
        print(f"  {'variant':<22}{'img/s':>11}{'range':>20}{'ms/step':>10}{'x plain':>9}{'% bound':>9}{'cold s':>8}")
        for label, samples in rates.items():
            rate, kind = statistics.median(samples), label.split()[0]
            share = f"{rate / bound['images_per_s']:>9.1%}" if kind == "train" else " " * 9
            print(f"  {label:<22}{rate:>11,.0f}{f'{min(samples):,.0f}-{max(samples):,.0f}':>20}{1e3 * batch_size / rate:>10.2f}"
                  f"{rate / plain[kind]:>9.2f}{share}{cold[label]:>8.2f}", flush=True)
            self.report["results"].append({"model": name, "batch_size": batch_size, "variant": label, "precision": precision, "images_per_s": rate, "samples": samples,
                                           "ratio_to_plain": rate / plain[kind], "cold_seconds": cold[label], "peak_bytes": memory[label], "bound": bound})
        variants.clear()

    def trajectory(self, name: str) -> None:
        """Mean training loss of the plain loop and of ours, from the same weights under the same recipe, as both learn the drawn images.

        Both take the same images in the same order; augmentation is drawn anew by either, so they agree within the noise
        between seeds or not at all.
        """
        from common.metrics import t_interval

        seeds, steps = self.learning
        recipe, self.amp = self.recipe(name, 50), self.pick_amp(name)
        recipe = replace(recipe, lr=1e-3 if name == "efficientnet_b2" else 3e-2)  # random weights move, and at 5e-2 SimpleCNN jumps
        losses: dict[str, list[list[float]]] = {"plain": [], "ours": []}
        for seed in range(seeds):
            for loop, take in (("plain", self.plain), ("ours", partial(self.ours, capture=self.cuda))):
                self.torch.manual_seed(seed)
                weights = self.plain_model(recipe).state_dict()  # drawn anew from the same seed: equal for both
                run = take(recipe, weights=weights, seed=seed)
                losses[loop].append([next(run) for _ in range(steps)])
                run.close()
        part = steps // 6
        curves = {loop: [[statistics.mean(run[k : k + part]) for k in range(0, steps, part)] for run in runs] for loop, runs in losses.items()}
        means = {loop: [statistics.mean(values) for values in zip(*runs)] for loop, runs in curves.items()}
        gap = t_interval([statistics.mean(ours[3:]) - statistics.mean(plain[3:]) for plain, ours in zip(curves["plain"], curves["ours"])])
        precision = self.precision_of(self.amp)
        print(f"\n{name}, batch {recipe.batch_size}, ours in {precision}: mean loss of each {part} steps over {seeds} seeds")
        for loop, values in means.items():
            print(f"  {loop:<6}" + "".join(f"{value:>8.3f}" for value in values))
        print(f"  ours - plain over the last {steps // 2} steps: {gap.mean:+.4f}, 95 % interval {gap.low:+.4f} to {gap.high:+.4f}, "
              f"{'within' if gap.low <= 0 <= gap.high else 'BEYOND'} the noise", flush=True)
        self.report["trajectories"].append({"model": name, "batch_size": recipe.batch_size, "precision": precision, "steps_a_part": part, "seeds": seeds, "means": means,
                                            "losses": losses, "gap": gap._asdict()})

    def profile(self, name: str, batch_size: int, shown: int = 15) -> None:
        """Time of our step by kernel on a GPU, captured if it can be, and by operator on a CPU; idle is what the kernels leave of the step."""
        torch = self.torch
        recipe, self.amp = self.recipe(name, batch_size), self.pick_amp(name)
        precision = self.precision_of(self.amp)
        steps = self.ours(recipe, capture=self.cuda)
        try:
            for _ in range(3):
                next(steps)
        except RuntimeError as error:
            print(f"\n{name}, batch {batch_size}: no profile ({str(error).splitlines()[0][:120]})")
            return
        kinds = torch.profiler.ProfilerActivity
        with torch.profiler.profile(activities=[kinds.CUDA if self.cuda else kinds.CPU], acc_events=True) as trace:
            self.sync()
            start = time.perf_counter()
            for _ in range(PROFILED_STEPS):
                next(steps)
            self.sync()
            step = (time.perf_counter() - start) / PROFILED_STEPS
        steps.close()
        events = [event for event in trace.key_averages() if (event.device_type == torch.autograd.DeviceType.CUDA) == self.cuda]
        spent = lambda event: (event.self_device_time_total if self.cuda else event.self_cpu_time_total) / 1e6 / PROFILED_STEPS  # noqa: E731
        kernels = sorted(({"name": event.key, "calls": event.count / PROFILED_STEPS, "seconds": spent(event)} for event in events), key=lambda one: -one["seconds"])
        busy = sum(one["seconds"] for one in kernels)
        calls, kind = sum(one["calls"] for one in kernels), "kernels" if self.cuda else "operators"
        print(f"\n{name}, batch {batch_size}, ours in {precision}: {1e3 * step:.2f} ms a step under the profiler, {1e3 * busy:.2f} ms of it "
              f"in {calls:,.0f} {kind}, {max(0.0, 1 - busy / step):.0%} idle")
        for one in kernels[:shown]:
            print(f"  {one['seconds'] / busy:>6.1%}{1e3 * one['seconds']:>10.3f} ms{one['calls']:>8.1f} x  {one['name'][:100]}")
        self.report["profiles"].append({"model": name, "batch_size": batch_size, "precision": precision, "step_seconds": step, "busy_seconds": busy, "kernels": kernels})

    def pace(self, steps: Iterator) -> float:
        """Seconds a step over about `self.seconds`, the first two not counted."""
        next(steps)
        next(steps)
        self.sync()
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < self.seconds or done < 3:
            next(steps)
            done += 1
            if done % 20 == 0:
                self.sync()
        self.sync()
        return (time.perf_counter() - start) / done

    def recipe(self, name: str, batch_size: int) -> Any:
        """The training recipe of the phase that the network belongs to, at this batch size."""
        from common.config import Recipe

        small = dict(optimizer="sgd", lr=1e-2, weight_decay=5e-4, crop_padding=4, flip=True, jitter=0.2)
        large = dict(optimizer="adamw", lr=1e-4, weight_decay=1e-2, crop_padding=4, flip=True, jitter=0.2, rotation=15, random_erasing=0.2)
        return Recipe(model=name, batch_size=batch_size, resize=MODELS[name], bn_momentum=0.01 if name == "efficientnet_b2" else 0.1,
                      dropout=0.3 if name == "efficientnet_b2" else 0.5, **(large if name == "efficientnet_b2" else small))

    def bound(self, name: str, recipe: Any, machine: dict[str, float]) -> dict[str, float]:
        """Images/s that the machine's measured peaks allow: training FLOPs, and bytes if all but convolutions were fused away.

        Forward once and backward twice for FLOPs; each convolution and linear layer moves its input and output once
        forward and twice backward, in the training dtype.
        """
        torch, moved = self.torch, 0
        from torch.utils.flop_counter import FlopCounterMode

        pass

        model = build(name, input_size=32 * recipe.resize).to(self.device).eval()
        hooks = []

        def count(_: Any, inputs: tuple, output: Any) -> None:
            nonlocal moved
            moved += inputs[0].numel() + output.numel()

        for module in model.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                hooks.append(module.register_forward_hook(count))
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, 3, 32 * recipe.resize, 32 * recipe.resize, device=self.device))
        flops, size = 3 * counter.get_total_flops(), 4 if self.amp is None else 2
        traffic = 3 * moved * size
        return {"flops": flops, "bytes": traffic, "images_per_s": min(machine["flops_per_s"] / flops, machine["bytes_per_s"] / traffic)}

    def variants(self, recipe: Any) -> dict[str, Callable[[], Iterator]]:
        """label → maker of an endless iterator that does one step each time."""
        found = {"train plain": lambda: self.plain(recipe)}
        if self.cuda:
            found["train plain+amp"] = lambda: self.plain(recipe, amp=True)
        found["train ours eager"] = lambda: self.ours(recipe)
        if self.cuda:
            found["train ours captured"] = lambda: self.ours(recipe, capture=True)
        if self.options.compile:
            found["train ours compiled"] = lambda: self.ours(recipe, capture=self.cuda, compiled=True)
        found |= {"data plain": lambda: self.plain_data(recipe), "data ours": lambda: self.our_data(recipe),
                  "eval plain": lambda: self.plain_eval(recipe), "eval ours": lambda: self.our_eval(recipe)}
        return found

    def batches(self, batch_size: int, seed: int) -> Iterator[list[int]]:
        """Endless batches of positions in train, in the order of ours."""

        for epoch in itertools.count():
            yield from epoch_order(len(self.arrays[1]), batch_size, seed_epoch(seed, epoch)).tolist()

    def loader(self, recipe: Any, seed: int = 0) -> Iterable[tuple[Any, Any]]:
        """Endless batches of the plain data side: PIL, torchvision transforms, DataLoader workers."""
        from PIL import Image
        from torchvision import transforms as T

        images, labels = self.arrays
        chain = [T.RandomCrop(32, padding=4), T.RandomHorizontalFlip()]
        chain += [T.RandomRotation(recipe.rotation)] if recipe.rotation else []
        chain += [T.ColorJitter(recipe.jitter, recipe.jitter, recipe.jitter)]
        chain += [T.Resize(32 * recipe.resize)] if recipe.resize > 1 else []
        chain += [T.ToTensor(), T.Normalize(self.splits.mean, self.splits.std)]
        chain += [T.RandomErasing(recipe.random_erasing)] if recipe.random_erasing else []
        transform = T.Compose(chain)

        class Drawn(self.torch.utils.data.Dataset):
            def __len__(self) -> int:
                return len(labels)

            def __getitem__(self, i: int) -> tuple[Any, int]:
                return transform(Image.fromarray(images[i])), int(labels[i])

        workers = min(8, os.cpu_count() or 1)
        return self.torch.utils.data.DataLoader(Drawn(), batch_sampler=self.batches(recipe.batch_size, seed), num_workers=workers, pin_memory=self.cuda,
                                                multiprocessing_context="fork")

    def plain_model(self, recipe: Any) -> Any:
        """The network as a tutorial has it: NCHW, fp32, B2 from the package untouched."""
        from efficientnet_pytorch import EfficientNet

        pass

        model = EfficientNet.from_name("efficientnet-b2", num_classes=10) if recipe.model == "efficientnet_b2" else build(recipe.model)
        return model.to(self.device)

    def plain(self, recipe: Any, amp: bool = False, weights: dict[str, Any] | None = None, seed: int = 0) -> Iterator[float]:
        """Steps of the plain loop; yields each loss, which `loss.item()` reads as tutorials do."""
        torch = self.torch
        model, dtype = self.plain_model(recipe).train(), self.amp if amp else None
        if weights:
            model.load_state_dict(weights)
        if amp:
            model = model.to(memory_format=torch.channels_last)
        adam = recipe.optimizer == "adamw"
        decay = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        optimizer = torch.optim.AdamW(model.parameters(), **decay) if adam else torch.optim.SGD(model.parameters(), momentum=0.9, **decay)
        scaler = torch.amp.GradScaler(self.device.type, enabled=dtype == torch.float16)
        for images, labels in self.loader(recipe, seed):
            images = images.to(self.device, memory_format=torch.channels_last if amp else torch.contiguous_format)
            labels = labels.to(self.device)
            optimizer.zero_grad()
            with torch.autocast(self.device.type, dtype, enabled=dtype is not None):
                loss = torch.nn.functional.cross_entropy(model(images), labels)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            yield loss.item()

    def prepare(self, recipe: Any) -> Any:
        """Our preprocessing for the drawn set."""

        return Preprocess(self.splits.mean, self.splits.std, recipe.resize, Augmentation.of(recipe), self.device)

    def our_model(self, recipe: Any) -> Any:
        """The network as the training scripts build it."""
        pass

        model = build(recipe.model, dropout=recipe.dropout, bn_momentum=recipe.bn_momentum)
        return model.to(self.device, memory_format=self.torch.channels_last)

    def ours(self, recipe: Any, capture: bool = False, compiled: bool = False, weights: dict[str, Any] | None = None, seed: int = 0) -> Iterator[float | None]:
        """Steps of `TrainStep`; yields each loss if `weights` were given, or nothing, since reading one waits for the device."""

        model = self.our_model(recipe).train()
        if weights:
            model.load_state_dict(weights)
        if compiled:
            model.compile()
        step = TrainStep(model, self.splits.train, self.prepare(recipe), make_optimizer(model, recipe, self.device),
                                recipe.batch_size, recipe.label_smoothing, self.amp)
        if capture and (problem := step.capture()):
            raise RuntimeError(problem)
        for epoch in itertools.count():
            step.start_epoch(seed_epoch(seed, epoch), [recipe.lr] * step.steps)
            for i in range(step.steps):
                step()
                yield float(step.losses[i]) if weights else None

    def plain_data(self, recipe: Any) -> Iterator[None]:
        """Batches of the plain data side, delivered to the device."""
        for images, labels in self.loader(recipe):
            images.to(self.device), labels.to(self.device)
            yield

    def our_data(self, recipe: Any) -> Iterator[None]:
        """Augmented batches of ours."""
        prepare, generator = self.prepare(recipe), self.torch.Generator(self.device).manual_seed(0)
        while True:
            order = self.torch.randint(len(self.splits.train), (recipe.batch_size,), device=self.device)
            prepare.train(self.splits.train.images.index_select(0, order), generator)
            yield

    def plain_eval(self, recipe: Any) -> Iterator[None]:
        """Forward passes as a tutorial evaluates: fp32, NCHW, from tensors that are ready."""
        model = self.plain_model(recipe).eval()
        images = self.torch.rand(recipe.batch_size, 3, 32 * recipe.resize, 32 * recipe.resize)
        while True:
            with self.torch.no_grad():
                model(images.to(self.device)).argmax(1)
            yield

    def our_eval(self, recipe: Any) -> Iterator[None]:
        """Forward passes of ours, from uint8."""

        model, prepare = self.our_model(recipe).eval(), self.prepare(recipe)
        images = self.splits.train.images[: recipe.batch_size]
        forward = (captured_forward(model, prepare, self.amp, images) if self.cuda else eager_forward(model, prepare, self.amp))
        while True:
            forward(images).argmax(1)
            yield


if __name__ == "__main__":
    run_script(main)
