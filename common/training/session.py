"""What every training script does before its first epoch and after its last."""
import gc
import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from common.config import PROCESS_START, Recipe, Runtime, Stage
from common.data.augment import Augmentation, Preprocess
from common.data.sources import load_splits
from common.data.splits import Splits
from common.errors import Interrupted
from common.files import Json, write_csv, write_json
from common.metrics import confusion_matrix, wilson_interval
from common.models.build import architecture, build, count_parameters
from common.models.trace import describe
from common.models.weights import (IMAGENET_MEAN, IMAGENET_STD, LITE2_ORIGIN, load_weights,
                                   retake_statistics)
from common.training.curves import MAX_TILES, augmented_batch, curves, sample_grid
from common.training.diagnose import diagnose
from common.training.fit import evaluate, fit, predict
from common.training.graph import compile_model
from common.training.run import Run, card, open_folder
from common.training.run import publish as put_at_best
from common.training.runtime import amp_dtype, environment, precision, set_up, wants_compile
from common.training.step import epoch_order, fit_batch_size, fit_lr
from common.words import count, percent

PROBE_SIZE = 4
CALIBRATION = 4, 500  # batches and images in each, for the statistics of transplanted weights
SHOWN_CLASSES = 20
# Mean and standard deviation of each channel by which the input is scaled; else the data's own.
SCALINGS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": ((0.5,) * 3, (0.5,) * 3)}
_starts = iter([PROCESS_START])  # a process's first run counts from its start, imports included


@dataclass
class Session:
    """A run ready to train: the model and all splits on one device, and how images become network
    input."""

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
        try:
            fit(self.model, self.splits, stage, self.recipe, self.prepare, self.run, amp=self.amp,
                total_epochs=total_epochs)
        except Interrupted:
            print(f"to go on: {self._same_command()}", flush=True)
            raise

    def _same_command(self) -> str:
        """The command that goes on with this run."""
        words = ["python", *sys.argv]
        if self.run.folder.name != self.runtime.run_name:  # a numbered trial run
            words += ["--name", self.run.folder.name]
        if Path(sys.argv[0]).stem == self.script and not self.runtime.resume:
            words.append("--resume")  # ablation.py, which calls this too, goes on by itself
        return shlex.join(words)


def begin(script: str, recipe: Recipe, runtime: Runtime) -> Session | None:
    """Data, model and run, in this order; None if the run is finished already.

    Says what will be trained on what, and saves cifar10_sample_images.png and augmented_batch.png
    in the run's folder.

    Raises:
        InputError: data, weights, folder or flags that cannot be used.
    """
    started = next(_starts, time.perf_counter())
    device = set_up(runtime, recipe.seed)
    _forget_earlier_runs(device)

    # Data first: the number of classes and the image size make the model.
    splits = load_splits(recipe, runtime)
    _say_data(splits)

    size = splits.image_size * recipe.resize
    arch = architecture(recipe.model, num_classes=len(splits.classes), input_size=size,
                        stem=recipe.stem, dropout=recipe.dropout, bn_momentum=recipe.bn_momentum)
    model = build(**arch)
    origin, loaded = "random weights", "weights: random"
    if recipe.pretrained:
        origin, loaded = load_weights(model, recipe.model, recipe.weights, runtime.offline,
                                      splits.classes)
    print(*describe(model, size), loaded, sep="\n")

    # The folder only now: data or weights that cannot be used leave none behind.
    amp = amp_dtype(runtime, device, recipe.model)
    versions = {**environment(device), "precision": precision(amp)}
    data = {"split_hash": splits.split_hash, "identity": splits.identity}
    folder = open_folder(script, recipe, runtime, data, versions)
    if (folder / "result.json").is_file():
        print(f"{folder} is finished: nothing to do")
        return None
    print(f"recipe: {_recipe_in_words(recipe, len(splits.train))}")
    print(f"run folder: {folder}")
    print(f"{versions['hardware']}, torch {versions['torch']}, {versions['precision']}", flush=True)

    # All images go to the device once, as uint8; no epoch waits for the host again.
    splits = splits.to(device)
    model.to(device, memory_format=torch.channels_last)
    mean, std = SCALINGS.get(recipe.normalization, (splits.mean, splits.std))
    prepare = Preprocess(mean, std, recipe.resize, Augmentation.of(recipe), device)
    probe = prepare.clean(splits.val.images[:PROBE_SIZE]).cpu()
    run = Run(folder, {
        **card(arch, splits, recipe, mean, std, probe, versions), "run": folder.name,
        "data_dir": str(Path(runtime.data_dir).resolve()) if runtime.data_dir else None,
        "weights_origin": origin,
    })
    # Before the first epoch, so that a wrong --data-dir or augmentation is seen at once.
    _save_samples(folder, splits, prepare, recipe)
    resumed = runtime.resume and (folder / "last.pt").is_file()
    if resumed:
        run.restore(model)
        print(f"resumed after epoch {len(run.history)}")
    elif runtime.resume:
        print("nothing to resume: the run begins")
    if origin == LITE2_ORIGIN and not resumed:
        # Its BatchNorms saw other inputs and other activations than this network's.
        train, (batches, size) = splits.train, CALIBRATION
        order = epoch_order(len(train), min(size, len(train)), seed=0).to(device)
        retake_statistics(model, (prepare.clean(train.images[at]) for at in order[:batches]))
    if wants_compile(runtime, device, len(splits.train) * (recipe.epochs + recipe.head_epochs)):
        compile_model(model)
    return Session(script, recipe, runtime, model, splits, prepare, run, amp, started, resumed)


def finish(session: Session, publish: bool = True) -> Json:
    """Restore the best epoch's weights, read test once, and record what came of the run.

    Writes curves.png, test_predictions.csv, result.json and, if `publish`, ./best.pt. Train, val
    and test are measured in one precision.

    Returns:
        The content of result.json: top-1 values are fractions, durations seconds; `wall_seconds`
        is that of this process, imports and test included, so after a resume (`resumed`) not the
        whole run's.
    """
    run, splits, model = session.run, session.splits, session.model
    best, last = run.best, run.history[-1]
    model.load_state_dict(run.best_weights)
    # The epochs' train accuracy is of weights that still moved, on augmented images; this is not.
    clean_loss, clean_top1 = evaluate(model, splits.train, session.prepare, session.amp)
    test = _test(session)
    plain = session.prepare.spec == Augmentation() and session.recipe.label_smoothing == 0
    told = diagnose(run.history, clean_top1, classes=len(splits.classes), regularised=not plain,
                    val_images=len(splits.val))
    title = f"{session.script} / {run.folder.name} ({splits.source})"
    curves(run.history, run.folder / "curves.png", title)
    # Of the last stage, which trains the whole network.
    rates = [row["images_per_s"] for row in run.history if row["stage"] == last["stage"]]
    on_gpu, versions = splits.train.labels.is_cuda, run.card["versions"]
    result = {
        "script": session.script, "source": splits.source, "class_names": splits.classes,
        "identity": splits.identity, "weights": run.card["weights_origin"],
        "best_epoch": best["epoch"], "epochs": len(run.history),
        "val_top1": best["val_top1"], "val_loss": best["val_loss"],
        "train_top1": last["train_top1"],
        "clean_train_top1": clean_top1, "clean_train_loss": clean_loss, **test,
        "train_seconds": sum(row["seconds"] for row in run.history), "images_per_s": max(rates),
        "wall_seconds": time.perf_counter() - session.started, "resumed": session.resumed,
        "parameters": count_parameters(model),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else None,
        "verdict": told.verdict, "diagnosis": told.words,
        "versions": versions, "precision": versions["precision"],
    }
    write_json(run.folder / "result.json", result)  # its presence says that the run is finished
    _say_result(result)
    if publish:
        best_file = put_at_best(run.folder / "best.pt", Path(session.runtime.out))
        print("next:", shlex.join(["python", "analyze.py", "--ckpt", str(best_file)]))
    return result


def _forget_earlier_runs(device: torch.device) -> None:
    """Free what an earlier run of this process left on the GPU, so that no run's peak is another's.
    """
    if device.type == "cuda":
        gc.collect()  # a compiled model is a cycle of references
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def _say_data(splits: Splits) -> None:
    """Sizes, classes and images of each class, and what the source has to say."""
    names, kinds = splits.classes[:SHOWN_CLASSES], len(splits.classes)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    sizes = " / ".join(f"{part} {len(split):,}" for part, split in parts.items())
    print(f"data: {splits.source}; {sizes}, {splits.image_size}×{splits.image_size} px")
    columns = [torch.bincount(split.labels, minlength=kinds).tolist() for split in parts.values()]
    width = max(map(len, names))
    for name, *images in zip(names, *columns):
        print(f"  {name:<{width}}  " + " / ".join(f"{n:>5,}" for n in images))
    if kinds > SHOWN_CLASSES:
        print(f"  … and {count(kinds - SHOWN_CLASSES, 'more class', 'more classes')}")
    for note in splits.notes:
        print(f"note: {note}")


def _recipe_in_words(recipe: Recipe, images: int) -> str:
    """Optimiser, rate, batch and augmentation in one line."""
    batch = fit_batch_size(images, recipe.batch_size)
    steps = len(epoch_order(images, batch, 0))
    optimizer = {"sgd": "SGD", "adamw": "AdamW"}[recipe.optimizer]
    lr = fit_lr(recipe.lr, images, recipe)
    spec = {
        f"crop ±{recipe.crop_padding} px": recipe.crop_padding, "flip": recipe.flip,
        f"rotation ±{recipe.rotation:g}°": recipe.rotation,
        f"colour jitter {recipe.jitter:g}": recipe.jitter,
        f"random erasing {recipe.random_erasing:g}": recipe.random_erasing,
    }
    augmentation = ", ".join(word for word, used in spec.items() if used) or "none"
    head = f"{recipe.head_epochs} + " if recipe.head_epochs else ""
    return (f"{head}{count(recipe.epochs, 'epoch')}, {optimizer}, lr {lr:.3g} {recipe.schedule}, "
            f"batch {batch} ({count(steps, 'step')} an epoch), "
            f"label smoothing {recipe.label_smoothing:g}; augmentation: {augmentation}")


def _save_samples(folder: Path, splits: Splits, prepare: Preprocess, recipe: Recipe) -> None:
    """cifar10_sample_images.png and augmented_batch.png, from generators of their own: training is
    not touched."""
    train, classes, device = splits.train, splits.classes, splits.train.labels.device
    labels, source = train.labels.cpu().numpy(), splits.source
    sample_grid(train.images.cpu().numpy(), labels, classes,
                folder / "cifar10_sample_images.png", f"Training images ({source})")
    some = epoch_order(len(train), min(MAX_TILES, len(train)), recipe.seed)[0]
    generator = torch.Generator(device).manual_seed(recipe.seed)
    batch = prepare.train(train.images[some.to(device)], generator)
    batch = batch * prepare.std.view(3, 1, 1) + prepare.mean.view(3, 1, 1)
    augmented_batch(batch.cpu().numpy(), labels[some], classes,
                    folder / "augmented_batch.png", f"Augmented images ({source})")


def _test(session: Session) -> Json:
    """The only read of test: accuracy with its interval, the mean over classes, and each image's
    prediction in test_predictions.csv."""
    test = session.splits.test
    logits = predict(session.model, test.images, session.prepare, amp=session.amp)
    preds = logits.argmax(1)
    write_csv(session.run.folder / "test_predictions.csv", ("name", "label", "prediction"),
              zip(test.names, test.labels.tolist(), preds.tolist()))
    confusion = confusion_matrix(preds, test.labels, logits.shape[1])
    right = int(confusion.trace())
    recalls = confusion.diag().double() / confusion.sum(1)  # nan for a class without test images
    return {
        "test_top1": right / len(test),
        "test_loss": float(F.cross_entropy(logits, test.labels)),
        "test_interval_95": wilson_interval(right, len(test)), "test_images": len(test),
        "balanced_top1": float(recalls.nanmean()),  # the mean of the classes' recalls
    }


def _say_result(result: Json) -> None:
    """What came of the run, for the terminal."""
    print(f"best epoch {result['best_epoch']}: val {percent(result['val_top1'])}, train without "
          f"augmentation {percent(result['clean_train_top1'])}")
    low, high = result["test_interval_95"]
    line = (f"test: {percent(result['test_top1'])} (95 % interval {percent(low)} to "
            f"{percent(high)}) of {count(result['test_images'], 'image')}, {result['source']}")
    if abs(result["balanced_top1"] - result["test_top1"]) > 0.001:
        line += f"; {percent(result['balanced_top1'])} in the mean over classes"
    print(line, *result["diagnosis"], sep="\n  ")
