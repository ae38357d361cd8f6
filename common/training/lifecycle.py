"""How a run begins and how it ends; what the scripts call around `fit`."""
from dataclasses import asdict
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F
from torch import cuda
from torch.nn import Module

from common.config import Recipe, Runtime
from common.data.augment import Preprocess
from common.data.splits import Splits
from common.files import Json, write_csv, write_json
from common.metrics import confusion_matrix, wilson_interval
from common.models.build import build, count_parameters, describe
from common.models.networks import PADDING_IMAGE_SIZE
from common.models.weights import LITE2_ORIGIN, load_weights, retake_statistics
from common.plots import MAX_CLASSES
from common.training import display
from common.training.diagnose import diagnose
from common.training.folder import claim_folder, publish
from common.training.loop import eval_batch_size, evaluate, predict
from common.training.run import FORMAT, Run
from common.training.runtime import amp_dtype, environment, precision, wants_compile
from common.training.schedule import epoch_order

PROBE_SIZE = 4
CALIBRATION = 2000  # images, for the statistics of transplanted weights


def build_model(recipe: Recipe, splits: Splits) -> Module:
    """The recipe's network for these classes and this image size, freshly initialised."""
    return build(**_architecture(recipe, splits))


def _architecture(recipe: Recipe, splits: Splits) -> Json:
    """Every argument of `build`: a later default does not change an old checkpoint."""
    return {"name": recipe.model, "num_classes": len(splits.classes),
            "input_size": splits.image_size * recipe.resize, "stem": recipe.stem,
            "dropout": recipe.dropout, "bn_momentum": recipe.bn_momentum,
            "padding_image_size": PADDING_IMAGE_SIZE}


def open_run(script: str, recipe: Recipe, runtime: Runtime, splits: Splits, model: Module) -> Run:
    """The run in its folder, new or to be gone on with; says what is trained, on what.

    Moves the model to the data's device, and saves sample_images.png (of CIFAR-10
    cifar10_sample_images.png) and augmented_batch.png in the folder.

    Raises:
        InputError: the folder cannot be used, see `claim_folder`.
    """
    device = splits.train.labels.device
    amp = amp_dtype(runtime, device, recipe.model)
    versions = {**environment(device), "precision": precision(amp)}
    folder = claim_folder(script, recipe, runtime, splits, versions)
    prepare = Preprocess(splits.mean, splits.std, recipe, device)
    card = {
        "format": FORMAT, "arch": _architecture(recipe, splits), "resize": recipe.resize,
        "image_size": splits.image_size, "fit": recipe.fit, "mean": prepare.mean.tolist(),
        "std": prepare.std.tolist(), "classes": splits.classes, "recipe": asdict(recipe),
        "source": splits.source, "split_hash": splits.split_hash, "identity": splits.identity,
        "probe_inputs": prepare.clean(splits.val.images[:PROBE_SIZE]).cpu().contiguous(),
        "versions": versions, "run": folder.name,
        "data_dir": runtime.data_dir and str(Path(runtime.data_dir).resolve()),
        "weights_origin": "random weights",
    }
    run = Run(script, folder, recipe, runtime, splits, model, prepare, card, amp)
    if run.finished:
        print(f"{folder} is finished: nothing to do")
        print(display.next_line(folder / "best.pt"))
        return run
    size = splits.image_size * recipe.resize
    print(*display.data_lines(splits), *describe(model, size),
          display.recipe_line(recipe, len(splits.train)), f"run folder: {folder}",
          "{hardware}, torch {torch}, {precision}".format(**versions), sep="\n", flush=True)
    model.to(device, memory_format=torch.channels_last)
    run.compiles = wants_compile(
        runtime, device, len(splits.train) * (recipe.epochs + recipe.head_epochs))
    _save_samples(run)
    return run


def _save_samples(run: Run) -> None:
    """Ten training images of each class as they are, and as the network sees them once, before the
    first epoch: a wrong folder or augmentation is seen at once."""
    train, prepare, splits = run.splits.train, run.prepare, run.splits
    labels = train.labels.cpu()
    classes = splits.classes[:MAX_CLASSES]
    some = torch.cat([(labels == k).nonzero()[:10, 0] for k in range(len(classes))])
    images, labels = train.images[some], labels[some].numpy()
    # Each epoch seeds its generators anew, so that training is not touched.
    augmented, _ = prepare.augment(images)
    augmented = ((augmented - prepare.shift) / prepare.scale).clamp(0, 1)  # unscaled
    name = "cifar10_sample_images.png" if splits.is_cifar10 else "sample_images.png"
    for file, title, shown in (
            (name, "Training images", images),
            ("augmented_batch.png", "Augmented images", augmented.mul(255).round().byte())):
        display.sample_grid(shown.cpu().numpy(), labels, splits.classes, run.folder / file,
                            f"{title} ({splits.source})")


def load_start(run: Run) -> None:
    """Put the weights into the model that training starts from, and say which: those of the last
    whole epoch of a run that goes on, else the recipe's pretrained ones, else random ones.

    Raises:
        InputError: weights that are not there or do not fit.
    """
    recipe, runtime, model, train = run.recipe, run.runtime, run.model, run.splits.train
    if runtime.resume and (run.folder / "last.pt").is_file():
        run.restore()
        print(f"resumed after epoch {len(run.history)}", flush=True)
        return
    if not recipe.pretrained:
        print("weights: random", flush=True)
        return
    origin, line = load_weights(model, recipe.model, recipe.weights, runtime.offline,
                                run.splits.classes)
    print(line, flush=True)
    run.card["weights_origin"] = origin
    if origin == LITE2_ORIGIN:
        # The statistics are of other activations than this network's.
        order = epoch_order(len(train), len(train), seed=0)[0, :CALIBRATION]
        batches = train.images[order].split(eval_batch_size(train.images, run.prepare))
        retake_statistics(model, map(run.prepare.clean, batches))


def finish(run: Run, copy_best: bool = True) -> None:
    """Restore the best epoch's weights, read test once, and record what came of the run.

    Writes curves.png, test_predictions.csv and result.json, in which top-1 values are fractions and
    durations seconds; `wall_seconds` is this process's, after a resume not the whole run's. Train,
    val and test are measured in one precision. With `copy_best`, best.pt is also put at ./best.pt.
    """
    splits, model, history, folder = run.splits, run.model, run.history, run.folder
    best, last = run.best, history[-1]
    model.load_state_dict(run.best_weights)
    # The epochs' train accuracy is of weights that still moved, on augmented images; this is not.
    clean_loss, clean_top1 = evaluate(model, splits.train, run.prepare, run.amp)
    test = _test(run)
    verdict, diagnosis = diagnose(history, clean_top1, classes=len(splits.classes),
                                  val_images=len(splits.val), regularised=run.prepare.augments)
    title = f"{run.script} / {folder.name} ({splits.source})"
    display.curves(history, folder / "curves.png", title)
    # Of the last stage, which trains the whole network.
    rate = max(row["images_per_s"] for row in history if row["stage"] == last["stage"])
    result = {
        "script": run.script, "source": splits.source, "class_names": splits.classes,
        "is_cifar10": splits.is_cifar10, "identity": splits.identity,
        "weights": run.card["weights_origin"],
        "best_epoch": best["epoch"], "epochs": len(history),
        "val_top1": best["val_top1"], "val_loss": best["val_loss"],
        "train_top1": last["train_top1"],
        "clean_train_top1": clean_top1, "clean_train_loss": clean_loss, **test,
        "train_seconds": sum(row["seconds"] for row in history), "images_per_s": rate,
        "wall_seconds": perf_counter() - run.runtime.started, "resumed": bool(run.optimizer_state),
        "parameters": count_parameters(model),
        "peak_memory_bytes": cuda.max_memory_allocated() or None,  # of a GPU
        "verdict": verdict, "diagnosis": diagnosis,
        "versions": run.card["versions"],
    }
    write_json(folder / "result.json", result)  # its presence says that the run is finished
    print(*display.result_lines(result), sep="\n")
    if copy_best:
        print(display.next_line(publish(folder / "best.pt", Path(run.runtime.out))))


def _test(run: Run) -> Json:
    """The only read of test: accuracy, interval, mean over classes, test_predictions.csv."""
    test = run.splits.test
    logits = predict(run.model, test.images, run.prepare, run.amp)
    preds = logits.argmax(1)
    write_csv(run.folder / "test_predictions.csv", ("name", "label", "prediction"),
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
