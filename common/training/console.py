"""What a training script says in the terminal: lines made of what others decided."""
import shlex
import sys
from pathlib import Path

from tqdm import tqdm

from common.config import Recipe, Runtime
from common.data.augment import augmentation
from common.data.splits import Splits
from common.files import Json
from common.plots import MAX_CLASSES
from common.training.schedule import batch_size_for, epoch_order, lr_for
from common.words import count, duration, percent, short

SLOW = 1800  # seconds of a stage on a CPU after which shorter ways are named
SHORTER = ("; a CPU is slow for this: --smoke shows the whole path, --train-limit N trains on fewer"
           " images")
DATA = "data: {}; train {:,} / val {:,} / test {:,}, {size}×{size} px"
RECIPE = ("recipe: {length}, {optimizer}, lr {lr:.3g} {schedule}, batch {batch} ({steps} an "
          "epoch), label smoothing {label_smoothing:g}; augmentation: {augmentation}")
EPOCH = ("{title} | Train Loss: {train_loss:.4f} Acc: {train_top1:.2%} | "
         "Val Loss: {val_loss:.4f} Acc: {val_top1:.2%} | "
         "LR {lr:.1e} | {seconds:.1f}s {images_per_s:,.0f} img/s")
RESULT = """\
best epoch {best_epoch}: val {val_top1}, train without augmentation {clean_train_top1}
test accuracy {test_top1} ({low} to {high}), {images}, {source}"""


def data_lines(splits: Splits) -> list[str]:
    """Sizes, classes and images of each class, and what the source has to say."""
    parts = splits.train, splits.val, splits.test
    lines = [DATA.format(splits.source, *map(len, parts), size=splits.image_size)]
    for label, name in enumerate(splits.classes[:MAX_CLASSES]):
        sizes = (int((part.labels == label).sum()) for part in parts)
        lines.append("  {:<18}  {:>5,} / {:>5,} / {:>5,}".format(short(name, 40), *sizes))
    if len(splits.classes) > MAX_CLASSES:
        lines.append(f"  … {len(splits.classes):,} classes")
    return lines + [f"note: {note}" for note in splits.notes]


def recipe_line(recipe: Recipe, images: int) -> str:
    """Optimiser, rate, batch and augmentation for so many training images."""
    batch = batch_size_for(images, recipe.batch_size)
    length = count(recipe.epochs, "epoch")
    if recipe.head_epochs:
        length = f"{recipe.head_epochs} + {length}"
    values = vars(recipe) | {
        "length": length, "optimizer": {"sgd": "SGD", "adamw": "AdamW"}[recipe.optimizer],
        "lr": lr_for(recipe.lr, images, recipe), "batch": batch,
        "steps": count(len(epoch_order(images, batch, 0)), "step"),
        "augmentation": augmentation(recipe) or "none",
    }
    return RECIPE.format(**values)


def announce(seconds: float, on_cpu: bool) -> None:
    """Say how long the stage will take, and on a slow machine how to make it shorter."""
    hint = SHORTER if on_cpu and seconds > SLOW else ""
    tqdm.write(f"this takes about {duration(seconds)}{hint}")
    print(end="", flush=True)


def epoch_line(title: str, row: Json) -> str:
    """A row of the history, after `Epoch 3/50`."""
    return EPOCH.format(title=title, **row)


def result_lines(result: Json) -> list[str]:
    """What came of the run: accuracies, the interval of test's, the diagnosis."""
    low, high = map(percent, result["test_interval_95"])
    shares = {key: percent(value) for key, value in result.items() if key.endswith("_top1")}
    shown = result | shares | {"images": count(result["test_images"], "image")}
    line = RESULT.format(low=low, high=high, **shown)
    if abs(result["balanced_top1"] - result["test_top1"]) > 0.001:
        line += "; {balanced_top1} in the mean over classes".format(**shares)
    return [line, *(f"  {sentence}" for sentence in result["diagnosis"])]


def next_line(ckpt: Path) -> str:
    """The command to type next, from where the user stands."""
    script = Path(sys.argv[0]).with_name("analyze.py")
    return "next: " + shlex.join(["python", str(script), "--ckpt", str(ckpt)])


def resume_line(script: str, folder: Path, runtime: Runtime) -> str:
    """The command that goes on with an interrupted run."""
    words = ["python", *sys.argv]
    if folder.name != runtime.run_name:  # a numbered trial run
        words += ["--name", folder.name]
    if Path(sys.argv[0]).stem == script and not runtime.resume:
        words.append("--resume")  # ablation.py, which trains arms too, goes on by itself
    return f"to go on: {shlex.join(words)}"
