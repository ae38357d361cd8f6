"""What a checkpoint gets wrong, how confident it is, and where it looks.

    python analyze.py --ckpt best.pt                     # its test images, the data of its training
    python analyze.py --ckpt best.pt --split val         # the images that its training held out
    python analyze.py --ckpt best.pt --cam gradcam       # the paper's heat maps; --layer NAME
    python analyze.py --ckpt best.pt --images a.jpg dir  # your own pictures, each explained

Writes numbers, figures and a self-contained report.html to runs/analyze/<run>/; never trains. The
same command writes the same folder anew; another checkpoint, other options or other images get a
folder with a number of its own.
"""
import argparse
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from common.config import Parser, Runtime, a_path, add_flags, collect, flag_of, option
from common.errors import InputError, run_script

flag = partial(option, "analysis")


@dataclass(frozen=True)
class Options:
    """What to analyse, and how closely."""

    ckpt: str = flag("best.pt", "checkpoint that a training script wrote")
    cam: str = flag(
        "hirescam", "heat maps: HiResCAM summed over several layers, or Grad-CAM of one",
        "hirescam", "gradcam")
    layer: str | None = flag(
        None, "layer of Grad-CAM (default: the deepest whose map is at least 4x4)")
    split: str = flag("test", "images to analyse", "test", "val")
    limit: int | None = flag(None, "only N of the images, drawn at random", 1, 100_000_000)
    open_errors: int = flag(25, "errors in the gallery, highest loss first", 1, 600)
    faithfulness: int | None = flag(
        None, "images that test the heat maps (default: 500, drawn ones 100)", 2, 100_000)
    seed: int = flag(0, "seed of --limit and of the examples", 0, 2**31 - 1)


PLACE = ("data_dir", "offline", "device", "out", "run_name")  # flags shared with training
WITH_PICTURES = {"images", "ckpt", "cam", "layer", "device", "out", "run_name"}


def analyze(options: Options, runtime: Runtime) -> Path:
    """Analyse one checkpoint on its test or val images; returns the folder with the report."""
    import torch  # after the command line has been read: it takes seconds to import

    from common.analysis import figures, report, scores
    from common.analysis.faithfulness import faithfulness, heat_below
    from common.analysis.findings import findings, is_first_study
    from common.analysis.inputs import open_folder, open_splits, open_subject, pick_split
    from common.files import sha256, write_json
    from common.training.display import next_line
    from common.training.loop import predict
    from common.training.runtime import environment, set_up

    # The checkpoint, and the data of its training.
    device = set_up(runtime, options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    subject = open_subject(options.ckpt, device, options.cam, options.layer)
    splits = open_splits(subject, runtime)
    split = pick_split(subject, splits, options.split, options.limit, generator).to(device)
    request = {**vars(options), "ckpt": sha256(subject.path), "images": splits.identity}
    name = f"{subject.run}-val" if options.split == "val" else subject.run
    folder = open_folder(runtime, name, request)
    title = f"{name}: {len(split):,} {options.split} images, {splits.source}"
    print(f"{subject}\n{title}")

    # What it predicts, and what that is worth.
    logits = predict(subject.model, split.images, subject.prepare, title="predictions")
    preds = logits.argmax(1)
    rows = scores.predictions(logits, split, subject.classes)
    result = {
        "title": title,
        "request": request,
        "checkpoint": {"file": str(subject.path), "run": subject.run,
                       "model": subject.recipe.model, "source": subject.card["source"]},
        "source": splits.source,
        "split": options.split,
        "classes": subject.classes,
        "is_cifar10": splits.is_cifar10,
        "heat_maps": {"cam": subject.cam, "where": subject.where},
        "versions": environment(device),
        **scores.scores(logits, split.labels, subject.classes),
    }

    # Whether the heat maps can be believed.
    order = torch.randperm(len(split), generator=generator).tolist()
    tested = sorted(order[: options.faithfulness or (100 if subject.recipe.synthetic else 500)])
    result["faithfulness"] = test = faithfulness(subject, split.images[tested], preds[tested])
    if is_first_study(result):
        birds = split.labels == subject.classes.index("bird")
        of_birds = faithfulness(subject, split.images[birds], preds[birds], [subject.cam])
        test["differences"]["bird"] = of_birds["differences"]["all"]

    # Where it looks: in single cases the evidence for the true and for the predicted class.
    shown = scores.examples(rows, order, options.open_errors)
    maps = {figure: [subject.heat(split.images[some], targets[some])
                     for targets in (split.labels, preds)] for figure, some in shown.items()}
    result["planes_as_ships"] = {"heat_below": {"predicted": heat_below(maps["heat_planes"][1])}}
    result["shown"] = {figure: [rows[i] for i in some] for figure, some in shown.items()}

    # Numbers, figures, report.
    write_json(folder / "analysis.json", result)
    scores.write_tables(folder, result, rows)
    for draw in (figures.confusion, figures.reliability, figures.faithfulness):
        draw(result, folder)
    for figure, some in shown.items():
        if some:
            figures.cases(result, folder, figure, split.images[some].cpu().numpy(), maps[figure])
    print(*findings(result), f"report: {report.write(folder)}", sep="\n")
    print(next_line(subject.path), "--images PICTURE")
    return folder


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser, Options())
    add_flags(parser, Runtime(), PLACE)
    parser.add_argument(
        "--images", nargs="+", type=a_path, metavar="PATH", default=argparse.SUPPRESS,
        help="pictures and folders of pictures to name and explain, in place of the test images",
    )
    given = parser.parse_args()
    options = collect(given, Options())
    runtime = collect(given, Runtime())
    if "images" not in given:
        analyze(options, runtime)
        return 0
    for flag in vars(given).keys() - WITH_PICTURES:
        raise InputError(f"{flag_of(flag)} has no effect on your own pictures: leave it out")
    from common.analysis.pictures import explain_pictures

    return explain_pictures(options.ckpt, options.cam, options.layer, given.images, runtime)


if __name__ == "__main__":
    run_script(main, "close other programs, or use --device cpu")
