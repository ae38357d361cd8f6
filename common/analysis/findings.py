"""What the numbers of an analysis say: findings, and verdicts on the first study's claims.

Each finding is a plain sentence with its statistics in brackets. Better, worse, more and less need
a 95 % interval wholly on one side.
"""
from collections.abc import Sequence

from common.analysis.inputs import CAMS
from common.analysis.scores import best_and_worst
from common.analysis.sentences import say
from common.files import Json

Claim = tuple[str, str, str]  # the claim, confirmed | refuted | open, the numbers
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
    words = [_accuracy(result)]
    if result["errors"]:
        words += [*_classes(result), _confusions(result)]
    words += [_confidence(result["calibration"]), _faithful(result)]
    return words


def _accuracy(result: Json) -> str:
    """How many images are named rightly; balanced accuracy too where classes are uneven."""
    drawn = "synthetic " if result["synthetic"] else ""
    words = say("Accuracy {top1:%1} ({interval_95:~}) on {images:#{drawn}{split} image}.",
                drawn=drawn, **result)
    sizes = [row["support"] for row in result["per_class"]]
    if max(sizes) > 1.5 * min(sizes):
        words += say(" Classes are uneven: balanced accuracy is {balanced_top1:%1}.", **result)
    return words


def _classes(result: Json) -> list[str]:
    """The classes found best and worst, none of them twice; nothing of a single class."""
    rows = best_and_worst(result["per_class"])
    n = min(2, len(rows) // 2)
    best, worst = rows[:n], rows[::-1][:n]
    return [f"Found best: {_recalls(best)}; least often: {_recalls(worst)}."] if n else []


def _recalls(rows: Sequence[Json]) -> str:
    """Classes, each with the share of it that is found."""
    return ", ".join(say("{class} {recall:%1}", **row) for row in rows)


def _confusions(result: Json) -> str:
    """The pairs that are confused most."""
    pairs = result["most_confused_pairs"][:3]
    named = [say("{classes[0]} and {classes[1]} ({images:,})", **pair) for pair in pairs]
    return f"Most confused: {', '.join(named)}."


def _confidence(table: Json) -> str:
    """Whether it is as confident as it is accurate."""
    sure = ("as confident as", "more confident than", "less confident than")[
        _side(table["overconfidence"])]
    return say("It is {sure} accurate (mean confidence {mean_confidence:%1}, minus accuracy "
               "{overconfidence:±%} points; calibration error {ece:%1}).", sure=sure, **table)


def _faithful(result: Json) -> str:
    """Whether heat maps show what decides, against each control and the other heat maps."""
    test, cam = result["faithfulness"], result["heat_maps"]["cam"]
    by = test["differences"]["all"]
    shows = sum(_sides(by["chance"])) > 0
    opening = "point at what decides" if shows else "are not shown to point at what decides"
    judged = [f"{JUDGED[sum(_sides(by[key]))]} {name}" for key, name in OTHERS.items() if key in by]
    return say("Its heat maps ({name}) {opening}: {judged} ({images:#image}; areas {areas}).",
               name=CAMS[cam], opening=opening, judged=", ".join(judged), areas=_areas(by), **test)


def _sides(by: Json) -> tuple[int, int]:
    """For deletion and insertion: 1 where the heat maps win, -1 where they lose."""
    return -_side(by["deletion"]), _side(by["insertion"])


def _areas(by: Json) -> str:
    """Differences of areas to each other map with their intervals."""
    line = "against {name} deletion {deletion:±}, insertion {insertion:±}"
    return "; ".join(say(line, name=name, **by[key]) for key, name in OTHERS.items() if key in by)


def claims(result: Json) -> list[Claim]:
    """(claim of the first study, confirmed | refuted | open, the numbers).

    Only for CIFAR-10's whole test set, of which the first study spoke. Confirmed and refuted need
    a 95 % interval wholly on one side; what it leaves undecided is open.
    """
    if not is_first_study(result):
        return []
    return [_vehicles(result), _cat_and_dog(result), _birds(result), _planes(result)]


def is_first_study(result: Json) -> bool:
    """Whether these are the images of which the first study spoke: CIFAR-10's whole test set."""
    return result["is_cifar10"] and result["split"] == "test" and result["images"] == 10_000


def _vehicles(result: Json) -> Claim:
    """Cars and trucks above 97 %: the worse of the two decides."""
    rows = [row for row in result["per_class"] if row["class"] in ("automobile", "truck")]
    worse = min(rows, key=lambda row: row["recall"])
    low, high = worse["recall_interval_95"]
    verdict = _verdict(_side({"low": low, "high": high}, 0.97))
    numbers = say("The lower of the two: {class} {recall:%1} ({recall_interval_95:~}).", **worse)
    return "Automobiles and trucks are recognised above 97 %", verdict, numbers


def _cat_and_dog(result: Json) -> Claim:
    """Cat and dog the main confusion: two counts differ where they lie 1.96 deviations apart."""
    pairs = {tuple(pair["classes"]): pair["images"] for pair in result["most_confused_pairs"]}
    own = pairs.pop(("cat", "dog"), 0)
    other = max(pairs.values(), default=0)
    gap = own - other
    reach = 1.96 * (own + other) ** 0.5
    verdict = _verdict(_side({"low": gap - reach, "high": gap + reach}))
    numbers = f"{own:,} errors, {other:,} between the pair that comes next."
    return "Cat and dog are the main confusion", verdict, numbers


def _birds(result: Json) -> Claim:
    """A bird's heat on its body, tested by what removing it does."""
    by = result["faithfulness"]["differences"]["bird"]
    numbers = say("Tested, since CIFAR-10 has no outlines, by what removing and adding a bird's "
                  "heat does, against chance and the centre ({n:#bird}; areas {areas}).",
                  areas=_areas(by), **by["chance"]["deletion"])
    verdict = _verdict(*_sides(by["chance"]), *_sides(by["centre"]))
    return "A bird's heat lies on what decides, its body, not on branches", verdict, numbers


def _planes(result: Json) -> Claim:
    """A plane taken for a ship because of the lower half of the image."""
    below = result["planes_as_ships"]["heat_below"]["predicted"]
    ends = below["low"], below["high"]
    numbers = say("{mean:%1} of the heat for ship lies there ({0:~}; {n:#plane}); colour itself "
                  "was not tested.", ends, **below)
    claim = "A plane is taken for a ship because of the (blue) lower half of the image"
    return claim, _verdict(_side(below, 0.5)), numbers


def _verdict(*sides: int) -> str:
    """All measures for the claim, or some against it and none for it, or neither."""
    if min(sides) > 0:
        return "confirmed"
    return "refuted" if min(sides) < 0 >= max(sides) else "open"


def _side(found: Json, zero: float = 0.0) -> int:
    """1 or -1 where the whole interval lies above or below `zero`, else 0.

    Its ends count as they are shown, with three decimals: one shown as `zero` is no side.
    """
    if found["low"] is None:
        return 0
    return (round(found["low"], 3) > zero) - (round(found["high"], 3) < zero)
