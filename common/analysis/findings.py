"""What the numbers of an analysis say: findings, and verdicts on the first report's claims.

Each finding is a plain sentence with its statistics in brackets. Better, worse, surer and the like
need a 95 % interval wholly on one side.
"""

from collections.abc import Sequence

from common.analysis.scores import best_and_worst
from common.analysis.sentences import say
from common.files import Json

Claim = tuple[str, str, str]  # the claim, confirmed | refuted | open, the numbers
CONTROLS = {"random": "chance", "centre": "the image's centre"}
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
        words += [_classes(result), _confusions(result)]
    return [*words, _confidence(result["calibration"]), _faithful(result["faithfulness"])]


def _accuracy(result: Json) -> str:
    """How many images are named rightly; balanced accuracy too where classes are uneven."""
    words = say(
        "It names {top1:%} of {images:#{drawn}{split} image} rightly ({errors:#error}; "
        "95 % interval {interval_95[0]:%} to {interval_95[1]:%}).",
        drawn="synthetic " * result["synthetic"], **result)
    sizes = [row["support"] for row in result["per_class"]]
    if max(sizes) > 1.5 * min(sizes):
        words += say(" Classes are uneven: balanced accuracy is {balanced_top1:%}.", **result)
    return words


def _classes(result: Json) -> str:
    """The classes found best and worst."""
    rows = best_and_worst(result["per_class"])
    return f"Found best: {_recalls(rows[:2])}; least often: {_recalls(rows[:-3:-1])}."


def _recalls(rows: Sequence[Json]) -> str:
    """Classes, each with the share of it that is found."""
    return ", ".join(say("{class} {recall:%1}", **row) for row in rows)


def _confusions(result: Json) -> str:
    """The pairs that are confused most."""
    pairs = result["most_confused_pairs"][:3]
    named = [say("{classes[0]} and {classes[1]} ({images:,})", **pair) for pair in pairs]
    return f"Most confused: {', '.join(named)}."


def _confidence(table: Json) -> str:
    """Whether it is as sure as it is right."""
    sure = ("as sure as", "surer than", "less sure than")[_side(table["overconfidence"])]
    return say("It is {sure} it is right (mean confidence {mean_confidence:%}, "
               "minus accuracy {overconfidence:±%} points; ECE {ece:%}).", sure=sure, **table)


def _faithful(test: Json) -> str:
    """Whether heat maps show what decides, against each control."""
    by = test["differences"]["all"]
    shows = sum(_sides(by["random"])) > 0
    opening = "point at what decides" if shows else "are not shown to point at what decides"
    judged = [f"{JUDGED[sum(_sides(by[key]))]} {name}" for key, name in CONTROLS.items()]
    return say("The heat maps {opening}: {judged} ({images:#image}; {areas}).", opening=opening,
               judged=", ".join(judged), areas=_areas(by), **test)


def _sides(by: Json) -> tuple[int, int]:
    """For deletion and insertion: 1 where Grad-CAM beats the control, -1 where it is beaten."""
    return -_side(by["deletion"]), _side(by["insertion"])


def _areas(by: Json) -> str:
    """Differences of areas to both controls with their intervals."""
    line = "areas against {name}: deletion {deletion:±}, insertion {insertion:±}"
    return "; ".join(say(line, name=name, **by[key]) for key, name in CONTROLS.items())


def claims(result: Json) -> list[Claim]:
    """(claim of the first report, confirmed | refuted | open, the numbers).

    Only for CIFAR-10's whole test set, of which the first report spoke. Confirmed and refuted need
    a 95 % interval wholly on one side; what it leaves undecided is open.
    """
    if not (result["is_cifar10"] and result["split"] == "test" and result["images"] == 10_000):
        return []
    return [_vehicles(result), _cat_and_dog(result), _birds(result), _planes(result)]


def _vehicles(result: Json) -> Claim:
    """Cars and trucks above 97 %: the worse of the two decides."""
    rows = [row for row in result["per_class"] if row["class"] in ("automobile", "truck")]
    low, high = min(row["recall_interval_95"] for row in rows)
    verdict = _verdict(_side({"low": low, "high": high}, 0.97))
    numbers = f"Recall: {_recalls(rows)}."
    return "Automobiles and trucks are recognised above 97 %", verdict, numbers


def _cat_and_dog(result: Json) -> Claim:
    """Cat and dog the main confusion: two counts differ where they lie 1.96 deviations apart."""
    pairs = {tuple(pair["classes"]): pair["images"] for pair in result["most_confused_pairs"]}
    own = pairs.pop(("cat", "dog"), 0)
    other = max(pairs.values(), default=0)
    gap = own - other
    reach = 1.96 * (own + other) ** 0.5
    verdict = _verdict(_side({"low": gap - reach, "high": gap + reach}))
    numbers = f"{own} errors are between cat and dog, {other} between the largest other pair."
    return "Cat and dog are the main confusion", verdict, numbers


def _birds(result: Json) -> Claim:
    """A bird's heat on its body, tested by what removing it does."""
    by = result["faithfulness"]["differences"]["bird"]
    numbers = say("CIFAR-10 has no outlines of its birds, so this is tested by what removing the "
                  "heat does: more than removing random places or the middle? ({n:#bird}; {areas})",
                  areas=_areas(by), **by["random"]["deletion"])
    verdict = _verdict(*_sides(by["random"]), *_sides(by["centre"]))
    return "A bird's heat lies on what decides, its body, not on branches", verdict, numbers


def _planes(result: Json) -> Claim:
    """A plane taken for a ship because of the lower half of the image."""
    below = result["planes_as_ships"]["heat_below"]["predicted"]
    numbers = say("In {n:#plane} taken for ships {mean:%1} of the heat for ship lies in the lower "
                  "half ({low:%1} to {high:%1}). Colour itself was not tested.", **below)
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
