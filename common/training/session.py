"""What every training script does before its first epoch and after its last: data, model and run in, result out."""
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from common.config import PROCESS_START, Recipe, Runtime, Stage
from common.data.augment import Augmentation, Preprocess
from common.data.sources import load_splits
from common.data.splits import Splits
from common.files import write_json
from common.metrics import wilson_interval
from common.models.build import architecture, build, count_parameters
from common.models.trace import describe
from common.models.weights import IMAGENET_MEAN, IMAGENET_STD, LITE2_ORIGIN, load_weights, retake_statistics
from common.training.curves import augmented_batch, curves, sample_grid
from common.training.diagnose import diagnose
from common.training.fit import evaluate, fit
from common.training.run import Run, card, open_folder, publish as put_at_best
from common.training.runtime import amp_dtype, environment, peak_rss, precision, set_up, wants_compile
from common.training.step import epoch_order, seed_epoch

PROBE_SIZE = 4
HALF = (0.5,) * 3
_starts = iter([PROCESS_START])  # the first run of a process counts from the process's start, imports included


@dataclass
class Study:
    """A run ready to train: the model and all splits on one device, and how images become network input."""

    script: str
    recipe: Recipe
    runtime: Runtime
    model: nn.Module
    splits: Splits
    prepare: Preprocess
    run: Run
    amp: torch.dtype | None
    started: float
    resumed: bool

    def fit(self, stage: Stage, total_epochs: int | None = None) -> None:
        """Train the unfrozen parameters for one stage; see `fit`."""
        fit(self.model, self.splits, stage, self.recipe, self.prepare, self.run, amp=self.amp, total_epochs=total_epochs)


def begin(script: str, recipe: Recipe, runtime: Runtime) -> Study | None:
    """Load the data, build the model, open the run folder and say what will happen; None if the run is finished already.

    Prints the sizes of train, val and test, the classes and images of each, the parameter count and the feature-map trace,
    and saves cifar10_sample_images.png and augmented_batch.png in the run's folder.

    Raises:
        InputError: data, weights, folder or flags that cannot be used.
    """
    started = next(_starts, time.perf_counter())
    device = set_up(runtime, recipe.seed)
    if device.type == "cuda":  # what an earlier run of this process needed, or left behind, is not this one's
        gc.collect()  # a compiled model is a cycle of references
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    amp = amp_dtype(runtime, device, recipe.model)
    splits = load_splits(recipe, runtime)
    versions = {**environment(device), "precision": precision(amp)}
    size = splits.image_size * recipe.resize
    arch = architecture(recipe.model, num_classes=len(splits.classes), input_size=size, stem=recipe.stem, dropout=recipe.dropout,
                               bn_momentum=recipe.bn_momentum)
    model = build(**arch)
    mean, std = {"data": (splits.mean, splits.std), "imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": (HALF, HALF),
                 "none": ((0.0,) * 3, (1.0,) * 3)}[recipe.normalization]
    origin, line = "random weights", "weights: random"
    if recipe.pretrained:
        origin, line = load_weights(model, recipe.model, recipe.weights, runtime.offline, splits.classes)
    folder, finished = open_folder(script, recipe, runtime, splits.split_hash, versions)
    if finished:
        print(f"{folder} is finished: nothing to do")
        return None
    for line in [_describe_data(splits), *describe(model, size), line, f"run folder: {folder}",
                 f"{versions['hardware']}, torch {versions['torch']}, {versions['precision']}"]:
        print(line)
    model.to(device, memory_format=torch.channels_last)
    splits = splits.to(device)
    prepare = Preprocess(mean, std, recipe.resize, Augmentation.of(recipe), device)
    resumed = runtime.resume and (folder / "last.pt").is_file()
    if origin == LITE2_ORIGIN and not resumed:
        retake_statistics(model, _calibration_batches(splits, prepare))
    _save_samples(folder, splits, prepare, recipe)
    probe = prepare.clean(splits.val.images[:PROBE_SIZE]).cpu()
    data_dir = str(Path(runtime.data_dir).resolve()) if runtime.data_dir else None
    run = Run(folder, recipe, {**card(arch, splits, recipe, mean, std, probe, versions), "data_dir": data_dir, "weights_origin": origin})
    if resumed:
        run.restore(model)
        print(f"resumed after epoch {len(run.history)}")
    if wants_compile(runtime, device, len(splits.train) * (recipe.epochs + recipe.head_epochs)):
        torch._dynamo.config.suppress_errors = True  # what cannot be compiled runs eagerly
        torch._dynamo.config.recompile_limit = 64  # one process compiles every arm of an ablation, each in train and eval mode
        model.compile()
    return Study(script, recipe, runtime, model, splits, prepare, run, amp, started, resumed)


def _calibration_batches(splits: Splits, prepare: Preprocess) -> Iterator[torch.Tensor]:
    """Network inputs of up to 2,000 training images, the same for every seed, not augmented; in batches of 500."""
    images = splits.train.images
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:2000]
    for part in chosen.to(images.device).split(500):
        yield prepare.clean(images[part])


def _describe_data(splits: Splits) -> str:
    """Sizes, classes and images per class of every split."""
    counts = {name: torch.bincount(getattr(splits, name).labels, minlength=len(splits.classes)).tolist() for name in ("train", "val", "test")}
    lines = [f"data: {splits.source}; train {len(splits.train):,} / val {len(splits.val):,} / test {len(splits.test):,}, "
             f"{splits.image_size}×{splits.image_size}, split {splits.split_hash}"]
    shown = range(min(20, len(splits.classes)))
    width = max(len(splits.classes[k]) for k in shown)
    lines += [f"  {splits.classes[k]:<{width}}  " + " / ".join(f"{counts[name][k]:>5,}" for name in counts) for k in shown]
    return "\n".join(lines + ([f"  … and {len(splits.classes) - 20} more classes"] if len(splits.classes) > 20 else []))


def _save_samples(folder: Path, splits: Splits, prepare: Preprocess, recipe: Recipe) -> None:
    """cifar10_sample_images.png and augmented_batch.png; both from generators of their own, so training is not touched."""
    sample_grid(splits.train.images.cpu().numpy(), splits.train.labels.cpu().numpy(), splits.classes, folder / "cifar10_sample_images.png",
                      f"Training images ({splits.source})")
    order = epoch_order(len(splits.train), min(recipe.batch_size, len(splits.train)), seed_epoch(recipe.seed, 1))
    at = order[0, :64].to(splits.train.labels.device)
    generator = torch.Generator(at.device).manual_seed(recipe.seed)
    batch = prepare.train(splits.train.images[at], generator) * prepare.std.view(3, 1, 1) + prepare.mean.view(3, 1, 1)
    augmented_batch(batch.clamp(0, 1).float().cpu().numpy(), splits.train.labels[at].cpu().numpy(), splits.classes, folder / "augmented_batch.png",
                          f"First augmented batch ({splits.source})")


def finish(study: Study, publish: bool = True) -> dict[str, Any]:
    """Restore the best epoch's weights, read test once, diagnose, and write result.json, curves.png and (`publish`) ./best.pt.

    Returns:
        The content of result.json: top-1 values are fractions, durations seconds; `wall_seconds` is that of this process, imports
        and test included, so after a resume (`resumed`) not the whole run's.
    """
    run, splits, model = study.run, study.splits, study.model
    model.load_state_dict(run.best_weights)
    clean_loss, clean_top1 = evaluate(model, splits.train, study.prepare)  # in fp32, as analyze.py does
    test_loss, test_top1 = evaluate(model, splits.test, study.prepare)  # the only read of test
    low, high = wilson_interval(round(test_top1 * len(splits.test)), len(splits.test))
    best = run.best
    words = diagnose(run.history, clean_train_top1=clean_top1, regularised=study.prepare.spec != Augmentation() or study.recipe.label_smoothing > 0)
    curves(run.history, run.folder / "curves.png", f"{run.folder.parent.name} / {run.folder.name} ({splits.source})")
    result = {
        "script": study.script, "source": splits.source, "class_names": splits.classes, "best_epoch": best["epoch"], "epochs": len(run.history), "val_top1": best["val_top1"],
        "val_loss": best["val_loss"], "train_top1": run.history[-1]["train_top1"], "clean_train_top1": clean_top1, "clean_train_loss": clean_loss,
        "test_top1": test_top1, "test_loss": test_loss, "test_interval_95": [low, high], "test_images": len(splits.test),
        "train_seconds": sum(row["seconds"] for row in run.history), "images_per_s": max(row["images_per_s"] for row in run.history),
        "wall_seconds": time.perf_counter() - study.started, "resumed": study.resumed, "parameters": count_parameters(model),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if splits.test.labels.is_cuda else None,
        "peak_rss_bytes": peak_rss(),
        "weights": run.card["weights_origin"], "verdict": words.verdict, "diagnosis": words.words, "versions": run.card["versions"],
    }
    print(f"best epoch {best['epoch']}: val {best['val_top1']:.2%}, train without augmentation {clean_top1:.2%}")
    print(f"test: {test_top1:.2%} (95 % interval {low:.2%} to {high:.2%}), loss {test_loss:.4f}, {splits.source}")
    for sentence in words.words:
        print(f"  {sentence}")
    if publish:
        print(put_at_best(run.folder / "best.pt"))
    write_json(run.folder / "result.json", result)  # last: its presence says that the run is finished
    return result
