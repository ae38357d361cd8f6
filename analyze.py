"""What a checkpoint gets wrong, how sure it is, and where it looks.

    python analyze.py --ckpt best.pt                     # the test images; the data of its training, or --data-dir
    python analyze.py --ckpt best.pt --split val         # the images that its training held out
    python analyze.py --ckpt best.pt --layer blocks.1    # Grad-CAM at another layer; a wrong name lists them all

Writes numbers, figures and a self-contained report.html to runs/analyze/<name>/; never trains. The same command writes the
same folder anew; another checkpoint, other options or other images get a folder with a number of its own.
"""
import argparse
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from common.config import Parser, Runtime, add_flags, collect, option
from common.errors import RunError, run_script


@dataclass(frozen=True)
class Options:
    """What to analyse, and how closely."""

    ckpt: str = option("best.pt", "checkpoint that a training script wrote", "analysis")
    split: str = option("test", "images to analyse", "analysis", choices=("test", "val"))
    limit: int | None = option(None, "only N of the images, drawn at random", "analysis", low=1)
    batch_size: int = option(500, "images a pass of the predictions", "analysis", low=1, high=65_536)
    layer: str | None = option(None, "layer of Grad-CAM (default: the deepest whose map is at least 4x4)", "analysis")
    open_errors: int = option(25, "errors in the gallery, the highest loss first", "analysis", low=1, high=600)
    faithfulness: int | None = option(None, "images on which Grad-CAM is put to the test (default: 500; 100 of the drawn set)", "analysis",
                                      low=2, high=100_000)
    seed: int = option(0, "seed of all that is drawn: --limit, examples, random maps", "analysis", low=0, high=2**31 - 1)


PLACE = ("data_dir", "offline", "device", "out", "run_name")  # flags shared with the training scripts
PLANE_AS_SHIP = ("airplane", "ship")


def analyze(options: Options, runtime: Runtime) -> Path:
    """Analyse one checkpoint; returns the folder with the report."""
    import torch  # after the command line has been read: it takes seconds to import
    from tqdm import tqdm

    from common.analysis.faithfulness import faithfulness, halves, heat_maps
    from common.analysis.inputs import describe, digest, open_folder, open_split, pick_layer, read_card
    from common.analysis.scores import examples, predictions, scores as score, write_tables
    from common.data.sources import CLASSES
    from common.data.augment import Preprocess
    from common.training.fit import predict
    from common.analysis import figures
    from common.analysis import report
    from common.training.run import load_model
    from common.data.augment import Augmentation
    from common.files import sha256, write_json
    from common.training.runtime import environment, set_up

    device = set_up(runtime, options.seed)
    model, card = load_model(Path(options.ckpt), device)
    recipe, classes, input_size = read_card(options.ckpt, card)
    generator = torch.Generator().manual_seed(options.seed)
    split, source = open_split(options.ckpt, card, recipe, options.split, options.limit, runtime, generator)
    layer, shape = pick_layer(model, input_size, options.layer)
    request = {**asdict(options), "ckpt": sha256(Path(options.ckpt)), "images": digest(split)}
    name = recipe.name() + ("-val" if options.split == "val" else "")
    folder = open_folder(Path(runtime.out) / "analyze", runtime.run_name, name, request)
    split = split.to(device)
    prepare = Preprocess(card["mean"], card["std"], card["resize"], Augmentation(), device)
    heat = partial(heat_maps, model, layer, prepare)

    with tqdm(total=len(split), desc="predictions", unit="img", disable=None) as bar:
        logits = predict(model, split.images, prepare, options.batch_size, progress=bar.update)
    preds, rows = logits.argmax(1), predictions(logits, split, classes)
    scores = score(logits, split.labels, classes)

    order = torch.randperm(len(split), generator=generator).tolist()
    right, wrong, typical = examples(rows, classes, scores["most_confused"], order)
    gallery = wrong[: options.open_errors]
    planes = [i for i in wrong if (rows[i]["true"], rows[i]["predicted"]) == PLANE_AS_SHIP]
    tested = sorted(order[: options.faithfulness or (100 if recipe.synthetic else 500)])
    is_cifar10 = tuple(classes) == CLASSES
    birds = {"bird": [rows[i]["true"] == "bird" for i in tested]} if is_cifar10 else {}
    with tqdm(total=3 * len(tested), desc="deletion and insertion", unit="img", disable=None) as bar:
        faith = faithfulness(model, layer, shape[1:], prepare, split.images[tested], preds[tested], generator, birds, bar.update)

    result = {
        "request": request, "checkpoint": describe(options.ckpt, card), "source": source, "split": options.split, "classes": classes,
        "is_cifar10": is_cifar10, "synthetic": recipe.synthetic, **scores, "faithfulness": faith,
        "gradcam": {"layer": layer, "map": shape, "input_size": input_size, "chosen": options.layer is not None},
        "planes_as_ships": halves(heat, model, prepare, split.images[planes], *map(classes.index, PLANE_AS_SHIP)) if is_cifar10 else None,
        "gallery": [rows[i] for i in gallery], "typical": [rows[i] for i in typical], "versions": environment(device),
    }  # fmt: skip
    write_json(folder / "analysis.json", result)
    write_tables(folder, result, rows)

    images, labels = split.images.cpu().numpy(), split.labels.cpu().numpy()
    title = f"{recipe.model}, {len(split):,} {options.split} images ({source})"
    note = f"Grad-CAM at {layer}: a map of {shape[1]}×{shape[2]} for {input_size}-pixel inputs."
    figures.confusion(scores["confusion"], classes, folder / "confusion.png", title)
    figures.class_bars(scores["per_class"], folder / "per_class.png", title)
    figures.reliability(scores, folder / "reliability.png", title)
    figures.faithfulness(faith, folder / "faithfulness.png", title, note)
    if right:
        figures.cam_grid(images[right], heat(split.images[right], preds[right]), labels[right], classes, folder / "gradcam_right.png", title, note)
    if wrong:
        figures.error_gallery(images[gallery], result["gallery"], folder / "errors.png", title)
    for name, some in (("gradcam_wrong", typical), ("gradcam_planes", planes[:10])):
        if some:
            maps = heat(split.images[some], split.labels[some]), heat(split.images[some], preds[some])
            figures.cam_pairs(images[some], *maps, [rows[i] for i in some], folder / f"{name}.png", title, note, halved=some is not typical)
    for line in report.write(folder):
        print(line)
    return folder


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, Options())
    add_flags(parser, Runtime(), PLACE)
    given = parser.parse_args()
    options, runtime = collect(given, Options()), collect(given, Runtime())
    try:
        analyze(options, runtime)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("out of memory", "not enough memory", "can't allocate memory")):
            raise
        raise RunError(f"out of memory at --batch-size {options.batch_size}: try --batch-size {max(1, options.batch_size // 2)}") from None


if __name__ == "__main__":
    run_script(main)
