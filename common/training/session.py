"""What every training script does before its first epoch and after its last."""
import gc
import shlex
import sys
from dataclasses import astuple, dataclass
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import Tensor, cuda
from torch.nn import Module

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
from common.plots import MAX_CLASSES
from common.training.curves import MAX_TILES, augmented_batch, curves, sample_grid
from common.training.diagnose import diagnose
from common.training.fit import EVAL_BATCH, evaluate, fit, predict
from common.training.graph import compile_model
from common.training.run import Run, card, open_folder
from common.training.run import publish as put_at_best
from common.training.runtime import amp_dtype, environment, precision, set_up, wants_compile
from common.training.step import epoch_order, fit_batch_size, fit_lr
from common.words import count, percent

PROBE_SIZE = 4
CALIBRATION = 2000  # images, for the statistics of transplanted weights
# In the order of Augmentation's fields.
AUGMENTATIONS = ("crop ±{} px", "flip", "rotation ±{:g}°", "colour jitter {:g}",
                 "random erasing {:g}", "CutMix {:g}")
RECIPE_LINE = ("recipe: {length}, {name}, lr {rate:.3g} {schedule}, batch {batch} ({steps} an "
               "epoch), label smoothing {label_smoothing:g}; augmentation: {augmentation}")
RESULT_LINES = """\
best epoch {best_epoch}: val {val_top1}, train without augmentation {clean_train_top1}
test: {test_top1} (95 % interval {low} to {high}) of {images}, {source}"""
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
    model: Module
    splits: Splits
    prepare: Preprocess
    run: Run
    amp: torch.dtype | None
    started: float
    resumed: bool

    def fit(self, stage: Stage, total_epochs: int = 0) -> None:
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
    started = next(_starts, perf_counter())
    device = set_up(runtime, recipe.seed, tune=not runtime.smoke)
    _forget_earlier_runs(device)

    # Data first: the number of classes and the image size make the model.
    splits = load_splits(recipe, runtime)
    _say_data(splits)
    arch, model, origin = _new_model(recipe, runtime, splits)

    # The folder only now: data or weights that cannot be used leave none behind.
    amp = amp_dtype(runtime, device, recipe.model)
    versions = {**environment(device), "precision": precision(amp)}
    data = {"split_hash": splits.split_hash, "identity": splits.identity}
    folder = open_folder(script, recipe, runtime, data, versions)
    if (folder / "result.json").is_file():
        print(f"{folder} is finished: nothing to do")
        return None
    print(_recipe_in_words(recipe, len(splits.train)), f"run folder: {folder}",
          "{hardware}, torch {torch}, {precision}".format(**versions), sep="\n", flush=True)

    # All images go to the device once, as uint8; no epoch waits for the host again.
    splits = splits.to(device)
    model.to(device, memory_format=torch.channels_last)
    mean, std = SCALINGS.get(recipe.normalization, (splits.mean, splits.std))
    prepare = Preprocess(mean, std, recipe.resize, Augmentation.of(recipe), device)
    probe = prepare.clean(splits.val.images[:PROBE_SIZE]).cpu()
    run = Run(folder, {
        **card(arch, splits, recipe, mean, std, probe, versions), "run": folder.name,
        "data_dir": runtime.data_dir and str(Path(runtime.data_dir).resolve()),
        "weights_origin": origin,
    })
    # Before the first epoch, so that a wrong --data-dir or augmentation is seen at once.
    _save_samples(folder, splits, prepare, recipe.seed)
    resumed = runtime.resume and (folder / "last.pt").is_file()
    if resumed:
        run.restore(model)
        print(f"resumed after epoch {len(run.history)}")
    elif runtime.resume:
        print("nothing to resume: the run begins")
    if origin == LITE2_ORIGIN and not resumed:
        _fit_statistics(model, splits.train.images, prepare)
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
    folder, history = run.folder, run.history
    best, last = run.best, history[-1]
    model.load_state_dict(run.best_weights)
    # The epochs' train accuracy is of weights that still moved, on augmented images; this is not.
    clean_loss, clean_top1 = evaluate(model, splits.train, session.prepare, session.amp)
    test = _test(session)
    told = diagnose(history, clean_top1, classes=len(splits.classes), val_images=len(splits.val),
                    regularised=session.prepare.spec != Augmentation())
    curves(history, folder / "curves.png", f"{session.script} / {folder.name} ({splits.source})")
    # Of the last stage, which trains the whole network.
    rate = max(row["images_per_s"] for row in history if row["stage"] == last["stage"])
    result = {
        "script": session.script, "source": splits.source, "class_names": splits.classes,
        "identity": splits.identity, "weights": run.card["weights_origin"],
        "best_epoch": best["epoch"], "epochs": len(history),
        "val_top1": best["val_top1"], "val_loss": best["val_loss"],
        "train_top1": last["train_top1"],
        "clean_train_top1": clean_top1, "clean_train_loss": clean_loss, **test,
        "train_seconds": sum(row["seconds"] for row in history), "images_per_s": rate,
        "wall_seconds": perf_counter() - session.started, "resumed": session.resumed,
        "parameters": count_parameters(model),
        "peak_memory_bytes": cuda.max_memory_allocated() or None,  # of a GPU
        "verdict": told.verdict, "diagnosis": told.words,
        "versions": run.card["versions"],
    }
    write_json(folder / "result.json", result)  # its presence says that the run is finished
    _say_result(result)
    if publish:
        best_file = put_at_best(folder / "best.pt", Path(session.runtime.out))
        print("next:", shlex.join(["python", "analyze.py", "--ckpt", str(best_file)]))
    return result


def _forget_earlier_runs(device: torch.device) -> None:
    """Free what an earlier run of this process left on the GPU, so that no run's peak is another's.
    """
    if device.type == "cuda":
        gc.collect()  # a compiled model is a cycle of references
        torch._C._cuda_clearCublasWorkspaces()
        cuda.empty_cache()
        cuda.reset_peak_memory_stats(device)


def _say_data(splits: Splits) -> None:
    """Sizes, classes and images of each class, and what the source has to say."""
    parts, kinds = (splits.train, splits.val, splits.test), len(splits.classes)
    print("data: {}; train {:,} / val {:,} / test {:,}, {size}×{size} px".format(
        splits.source, *map(len, parts), size=splits.image_size))
    names = splits.classes[:MAX_CLASSES]
    width = max(map(len, names))
    columns = [torch.bincount(part.labels, minlength=kinds).tolist() for part in parts]
    for name, *images in zip(names, *columns):
        print("  {:<{}}  {:>5,} / {:>5,} / {:>5,}".format(name, width, *images))
    if kinds > MAX_CLASSES:
        print(f"  … and {count(kinds - MAX_CLASSES, 'more class', 'more classes')}")
    for note in splits.notes:
        print(f"note: {note}")


def _new_model(recipe: Recipe, runtime: Runtime, splits: Splits) -> tuple[Json, Module, str]:
    """(arguments of `build`, the network on the CPU, what its weights are); says all three."""
    size = splits.image_size * recipe.resize
    arch = architecture(recipe.model, num_classes=len(splits.classes), input_size=size,
                        stem=recipe.stem, dropout=recipe.dropout, bn_momentum=recipe.bn_momentum)
    model = build(**arch)
    origin, loaded = "random weights", "weights: random"
    if recipe.pretrained:
        origin, loaded = load_weights(model, recipe.model, recipe.weights, runtime.offline,
                                      splits.classes)
    print(*describe(model, size), loaded, sep="\n")
    return arch, model, origin


def _recipe_in_words(recipe: Recipe, images: int) -> str:
    """Optimiser, rate, batch and augmentation in one line."""
    batch = fit_batch_size(images, recipe.batch_size)
    steps = len(epoch_order(images, batch, 0))
    length = count(recipe.epochs, "epoch")
    if recipe.head_epochs:
        length = f"{recipe.head_epochs} + {length}"
    spec = zip(AUGMENTATIONS, astuple(Augmentation.of(recipe)))
    augmentation = ", ".join(words.format(value) for words, value in spec if value) or "none"
    return RECIPE_LINE.format(
        length=length, name={"sgd": "SGD", "adamw": "AdamW"}[recipe.optimizer], batch=batch,
        rate=fit_lr(recipe.lr, images, recipe), steps=count(steps, "step"),
        augmentation=augmentation, **vars(recipe))


def _save_samples(folder: Path, splits: Splits, prepare: Preprocess, seed: int) -> None:
    """cifar10_sample_images.png and augmented_batch.png; each epoch seeds its generators anew, so
    training is not touched."""
    train, classes, source = splits.train, splits.classes, splits.source
    labels = train.labels.cpu().numpy()
    sample_grid(train.images.cpu().numpy(), labels, classes,
                folder / "cifar10_sample_images.png", f"Training images ({source})")
    some = epoch_order(len(train), MAX_TILES, seed)[0]
    batch = (prepare.train(train.images[some])[0] - prepare.shift) / prepare.scale
    augmented_batch(batch.cpu().numpy(), labels[some], classes,
                    folder / "augmented_batch.png", f"Augmented images ({source})")


def _fit_statistics(model: Module, images: Tensor, prepare: Preprocess) -> None:
    """Take transplanted weights' BatchNorm statistics anew, which are of other inputs and of other
    activations than this network's."""
    order = epoch_order(len(images), len(images), seed=0)[0, :CALIBRATION]
    retake_statistics(model, map(prepare.clean, images[order].split(EVAL_BATCH)))


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
    low, high = map(percent, result["test_interval_95"])
    shares = {key: percent(value) for key, value in result.items() if key.endswith("_top1")}
    shown = result | shares | {"images": count(result["test_images"], "image")}
    line = RESULT_LINES.format(low=low, high=high, **shown)
    if abs(result["balanced_top1"] - result["test_top1"]) > 0.001:
        line += "; {balanced_top1} in the mean over classes".format(**shares)
    print(line, *result["diagnosis"], sep="\n  ")
