"""What the numbers of an analysis say: findings, and verdicts on the first study's claims.

Each finding is a plain sentence with its statistics in brackets. Better, worse, more and less need
a 95 % interval wholly on one side.
"""
from common.analysis.inputs import CAMS
from common.analysis.scores import by_recall
from common.analysis.sentences import say
from common.files import Json
from common.metrics import wilson_interval

OTHERS = {"chance": "chance", "centre": "the image's centre", **CAMS}
# By the sum of the two sides; the last two are those of -2 and -1.
JUDGED = (
    "no better than",
    "better by one of two measures than",
    "better than",
    "worse than",
    "worse by one of two measures than",
)


def findings(result: Json) -> list[str]:
    """Sentences on accuracy, classes, confusions, confidence, and what the heat maps are worth."""
    words = [say("Accuracy {top1:%1} ({interval_95:~}) on {images:#{split} image}.", **result)]
    rows = by_recall(result["per_class"])
    sizes = [row["support"] for row in rows]
    if max(sizes) > 1.5 * min(sizes):
        words[0] += say(" Classes are uneven: balanced accuracy is {balanced_top1:%1}.", **result)
    if result["errors"]:
        if len(rows) > 1:
            words.append(say("Found best: {0[class]} {0[recall]:%1}; least often: "
                             "{1[class]} {1[recall]:%1}.", rows[0], rows[-1]))
        pairs = ", ".join(say("{classes[0]} and {classes[1]} ({images:,})", **pair)
                          for pair in result["most_confused_pairs"][:3])
        words.append(f"Most confused: {pairs}.")
    table = result["calibration"]
    sure = ("as confident as", "more confident than", "less confident than")[
        _side(**table["overconfidence"])]
    words.append(say("It is {sure} accurate (mean confidence {mean_confidence:%1}, minus accuracy "
                     "{overconfidence:±%} points; calibration error {ece:%1}).", sure=sure,
                     **table))
    return [*words, _faithful(result)]


def _faithful(result: Json) -> str:
    """Whether heat maps show what decides, against each control and the other heat maps."""
    test, cam = result["faithfulness"], result["heat_maps"]["cam"]
    by = test["differences"]["all"]
    gains = {key: sum(_sides(by[key])) for key in OTHERS if key in by}
    opening = "point" if gains["chance"] > 0 else "are not shown to point"
    judged = ", ".join(f"{JUDGED[gain]} {OTHERS[key]}" for key, gain in gains.items())
    return say("Its heat maps ({name}) {opening} at what decides: {judged} ({images:#image}; "
               "areas {areas}).", name=CAMS[cam], opening=opening, judged=judged,
               areas=_areas(by), **test)


def _sides(by: Json) -> tuple[int, int]:
    """For deletion and insertion: 1 where the heat maps win, -1 where they lose."""
    return -_side(**by["deletion"]), _side(**by["insertion"])


def _areas(by: Json) -> str:
    """Differences of areas to each other map with their intervals."""
    line = "against {name} deletion {deletion:±}, insertion {insertion:±}"
    return "; ".join(say(line, name=name, **by[key]) for key, name in OTHERS.items() if key in by)


def is_first_study(result: Json) -> bool:
    """Whether these are the images of which the first study spoke: CIFAR-10's whole test set."""
    return result["is_cifar10"] and result["split"] == "test" and result["images"] == 10_000


def claims(result: Json) -> list[tuple[str, str, str]]:
    """(claim of the first study, confirmed | refuted | open, the numbers).

    Only for CIFAR-10's whole test set, of which the first study spoke. Confirmed and refuted need
    a 95 % interval wholly on one side; what it leaves undecided is open.
    """
    if not is_first_study(result):
        return []
    vehicles = [row for row in result["per_class"] if row["class"] in ("automobile", "truck")]
    worse = min(vehicles, key=lambda row: row["recall"])

    pairs = {tuple(pair["classes"]): pair["images"] for pair in result["most_confused_pairs"]}
    own = pairs.pop(("cat", "dog"), 0)
    other = max(pairs.values(), default=0)
    lead = wilson_interval(own, max(1, own + other))  # cat and dog's share of both counts

    birds = result["faithfulness"]["differences"]["bird"]
    below = result["planes_as_ships"]["heat_below"]["predicted"]
    return [
        ("Automobiles and trucks are recognised above 97 %",
         _verdict(_side(*worse["recall_interval_95"], 0.97)),
         say("The lower of the two: {class} {recall:%1} ({recall_interval_95:~}).", **worse)),
        ("Cat and dog are the main confusion",
         _verdict(_side(*lead, 0.5)),
         f"{own:,} errors, {other:,} between the pair that comes next."),
        ("A bird's heat lies on what decides, its body, not on branches",
         _verdict(*_sides(birds["chance"]), *_sides(birds["centre"])),
         say("Tested, since CIFAR-10 has no outlines, by what removing and adding a bird's heat "
             "does, against chance and the centre ({n:#bird}; areas {areas}).",
             areas=_areas(birds), **birds["chance"]["deletion"])),
        ("A plane is taken for a ship because of the (blue) lower half of the image",
         _verdict(_side(**below, zero=0.5)),
         say("{mean:%1} of the heat for ship lies there ({0:~}; {n:#plane}); colour itself was "
             "not tested.", (below["low"], below["high"]), **below)),
    ]


def _verdict(*sides: int) -> str:
    """All measures for the claim, or some against it and none for it, or neither."""
    if min(sides) > 0:
        return "confirmed"
    return "refuted" if min(sides) < 0 >= max(sides) else "open"


def _side(low: float | None, high: float | None, zero: float = 0.0, **_: float | None) -> int:
    """1 or -1 where the whole interval lies above or below `zero`, else 0.

    Its ends count as they are shown, with three decimals: one shown as `zero` is no side.
    """
    if low is None:
        return 0
    return (round(low, 3) > zero) - (round(high, 3) < zero)
