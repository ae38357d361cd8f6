"""What the numbers of an analysis say: findings, and verdicts on the first report's claims.

Each finding is a plain sentence with its statistics in brackets. Better, worse, surer and the like
need a 95 % interval wholly on one side.
"""

from collections.abc import Sequence

from common.files import Json
from common.words import count, number, percent

Claim = tuple[str, str, str]  # the claim, confirmed | refuted | open, the numbers
CONTROLS = {"random": "chance", "centre": "the image's centre"}
JUDGED = {
    2: "better than",
    1: "better by one of two measures than",
    0: "no better than",
    -1: "worse by one of two measures than",
    -2: "worse than",
}


def findings(result: Json) -> list[str]:
    """Sentences on accuracy, classes, confusions, confidence, and what the heat maps are worth."""
    words = [_accuracy(result)]
    if result["errors"]:
        words += [_classes(result), _confusions(result)]
    return [*words, _confidence(result["calibration"]), _faithful(result["faithfulness"])]


def _accuracy(result: Json) -> str:
    """How many images are named rightly; balanced accuracy too where classes are uneven."""
    low, high = map(percent, result["interval_95"])
    kind = f"synthetic {result['split']}" if result["synthetic"] else result["split"]
    images = count(result["images"], f"{kind} image")
    words = (f"It names {percent(result['top1'])} of {images} rightly "
             f"({count(result['errors'], 'error')}; 95 % interval {low} to {high}).")
    if is_uneven(result):
        words += f" Classes are uneven: balanced accuracy is {percent(result['balanced_top1'])}."
    return words


def is_uneven(result: Json) -> bool:
    """Whether one class has half as many images again as another."""
    sizes = [row["support"] for row in result["per_class"]]
    return max(sizes) > 1.5 * min(sizes)


def _classes(result: Json) -> str:
    """The classes found best and worst."""
    rows = [row for row in result["per_class"] if row["support"]]
    rows.sort(key=lambda row: -row["recall"])
    named = [f"{row['class']} {percent(row['recall'], 1)}" for row in rows]
    best, worst = ", ".join(named[:2]), ", ".join(named[:-3:-1])
    return f"Found best: {best}; least often: {worst}."


def _confusions(result: Json) -> str:
    """The pairs that are confused most."""
    pairs = result["most_confused_pairs"][:3]
    named = []
    for pair in pairs:
        one, other = pair["classes"]
        named.append(f"{one} and {other} ({pair['images']:,})")
    return f"Most confused: {', '.join(named)}."


def _confidence(table: Json) -> str:
    """Whether it is as sure as it is right."""
    gap = table["overconfidence"]
    sure = ("as sure as", "surer than", "less sure than")[_side(gap)]
    return (f"It is {sure} it is right (mean confidence {percent(table['mean_confidence'])}, "
            f"minus accuracy {span(gap, 2, 100)} points; ECE {percent(table['ece'])}).")


def _faithful(test: Json) -> str:
    """Whether heat maps show what decides, against each control."""
    by = test["differences"]["all"]
    shows = sum(_sides(by["random"])) > 0
    opening = "point at what decides" if shows else "are not shown to point at what decides"
    judged = [f"{JUDGED[sum(_sides(by[key]))]} {name}" for key, name in CONTROLS.items()]
    images = count(test["images"], "image")
    return f"The heat maps {opening}: {', '.join(judged)} ({images}; {_areas(by)})."


def _sides(by: Json) -> tuple[int, int]:
    """For deletion and insertion: 1 where Grad-CAM beats the control, -1 where it is beaten."""
    return -_side(by["deletion"]), _side(by["insertion"])


def _areas(by: Json) -> str:
    """Differences of areas to both controls with their intervals."""
    words = []
    for key, name in CONTROLS.items():
        deletion, insertion = span(by[key]["deletion"]), span(by[key]["insertion"])
        words.append(f"areas against {name}: deletion {deletion}, insertion {insertion}")
    return "; ".join(words)


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
    lows, highs = zip(*(row["recall_interval_95"] for row in rows))
    side = _side({"low": min(lows), "high": min(highs)}, 0.97)
    shown = ", ".join(f"{row['class']} {percent(row['recall'], 1)}" for row in rows)
    claim = "Automobiles and trucks are recognised above 97 %"
    return claim, _verdict([side]), f"Recall: {shown}."


def _cat_and_dog(result: Json) -> Claim:
    """Cat and dog the main confusion: two counts differ where they lie 1.96 deviations apart."""
    pairs = {frozenset(pair["classes"]): pair["images"] for pair in result["most_confused_pairs"]}
    own = pairs.pop(frozenset(("cat", "dog")), 0)
    other = max(pairs.values(), default=0)
    reach = 1.96 * (own + other) ** 0.5
    gap = own - other
    side = _side({"low": gap - reach, "high": gap + reach})
    numbers = f"{own} errors are between cat and dog, {other} between the largest other pair."
    return "Cat and dog are the main confusion", _verdict([side]), numbers


def _birds(result: Json) -> Claim:
    """A bird's heat on its body, tested by what removing it does."""
    by = result["faithfulness"]["differences"]["bird"]
    birds = count(by["random"]["deletion"]["n"], "bird")
    numbers = ("CIFAR-10 has no outlines of its birds, so this is tested by what removing the heat "
               "does: more than removing random places or the middle? "
               f"({birds}; {_areas(by)})")
    sides = _sides(by["random"]) + _sides(by["centre"])
    claim = "A bird's heat lies on what decides, its body, not on branches"
    return claim, _verdict(sides), numbers


def _planes(result: Json) -> Claim:
    """A plane taken for a ship because of the lower half of the image."""
    below = result["planes_as_ships"]["heat_below"]["predicted"]
    mean, low, high = (percent(below[key], 1) for key in ("mean", "low", "high"))
    numbers = (f"In {count(below['n'], 'plane')} taken for ships {mean} of the heat for ship lies "
               f"in the lower half ({low} to {high}). Colour itself was not tested.")
    claim = "A plane is taken for a ship because of the (blue) lower half of the image"
    return claim, _verdict([_side(below, 0.5)]), numbers


def _verdict(sides: Sequence[int]) -> str:
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
    low, high = round(found["low"], 3), round(found["high"], 3)
    return (low > zero) - (high < zero)


def span(found: Json, digits: int = 3, scale: float = 1) -> str:
    """A mean and the ends of its interval; dashes where one image has none."""
    shown = []
    for end in (found["mean"], found["low"], found["high"]):
        shown.append("–" if end is None else number(scale * end, digits, "+"))
    return "{} ({} to {})".format(*shown)
