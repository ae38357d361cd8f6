"""What the numbers of an analysis say, in words: findings, and the verdicts on what the first study claimed."""
from collections.abc import Mapping, Sequence
from typing import Any



Result = Mapping[str, Any]
CONTROLS = {"random": "random maps", "centre": "the centre prior"}


def findings(result: Result) -> list[str]:
    """What the numbers say, in sentences: accuracy, classes, confusions, confidence, and whether heat maps can be believed."""
    n, errors, (low, high) = result["images"], result["errors"], result["interval_95"]
    words = [f"Top-1 is {result['top1']:.2%} (95 % interval {low:.2%} to {high:.2%}): {errors:,} errors in {n:,} images{_drawn(result)}."]
    if errors:
        words += [_classes(result), _confusions(result)]
    return [*words, confidence(result["calibration"]), *faithful(result)]


def _drawn(result: Result) -> str:
    """A reminder where the images were drawn by code."""
    return ", all of them synthetic" if result["synthetic"] else ""


def _classes(result: Result) -> str:
    """The two classes found best and the two found worst."""
    rows = sorted((row for row in result["per_class"] if row["support"]), key=lambda row: -row["recall"])
    few = min(2, len(rows) // 2)
    if not few:
        return f"Only one class occurs: {rows[0]['class']}, recall {rows[0]['recall']:.1%}."
    best, worst = (", ".join(f"{row['class']} {row['recall']:.1%}" for row in some) for some in (rows[:few], rows[: -few - 1 : -1]))
    return f"Recall is highest for {best}, lowest for {worst}."


def _confusions(result: Result) -> str:
    """The most frequent pair, its two directions, and the next pairs."""
    pairs, directions = result["most_confused_pairs"], {(one["true"], one["predicted"]): one["images"] for one in result["most_confused"]}
    (a, b), images = pairs[0]["classes"], pairs[0]["images"]
    ways = ", ".join(f"{t} → {p} {directions[t, p]}" for t, p in ((a, b), (b, a)) if (t, p) in directions)
    others = ", ".join(f"{' and '.join(pair['classes'])} ({pair['images']})" for pair in pairs[1:3])
    return (f"Most confused are {a} and {b}: {images} errors ({ways}), {images / result['errors']:.1%} of all" + (f"; then {others}." if others else "."))


def confidence(table: Mapping[str, Any]) -> str:
    """Over- or under-confident, or neither beyond chance."""
    gap, sure = table["overconfidence"], f"mean confidence is {table['mean_confidence']:.2%}, ECE {table['ece']:.2%}"
    side = _side(gap)
    if side == 0:
        return f"No measurable over- or under-confidence: {sure}; confidence minus accuracy is {_points(gap)}."
    return f"The network is {'over' if side > 0 else 'under'}-confident: {sure}; confidence minus accuracy is {_points(gap)}."


def faithful(result: Result) -> list[str]:
    """One sentence for each control that Grad-CAM was compared with."""
    words, test = [], result["faithfulness"]
    for control, name in CONTROLS.items():
        by = test["differences"]["all"][control]
        words.append(f"Grad-CAM against {name}, {test['images']} images: {_judge(by)}; {_areas(by)}.")
    return words


def _judge(by: Mapping[str, Any]) -> str:
    """Whether Grad-CAM beats a control: deletion should fall and insertion rise."""
    sides = -_side(by["deletion"]), _side(by["insertion"])
    if sides == (0, 0):
        return "no measurable difference"
    if min(sides) >= 0:
        return "more faithful" + ("" if min(sides) else f" by {'deletion' if sides[0] else 'insertion'}, no measurable difference by the other measure")
    return "less faithful" if max(sides) <= 0 else "more faithful by one measure, less by the other"


def _areas(by: Mapping[str, Any]) -> str:
    """Both differences of areas with their intervals."""
    return ", ".join(f"{name} area {_signed(by[name]['mean'], '+.3f')}{in_brackets(by[name], '+.3f')}" for name in ("deletion", "insertion") if by[name]["n"])


def claims(result: Result) -> list[tuple[str, str, str]]:
    """(claim of the first study, confirmed | refuted | open, the numbers), for CIFAR-10's classes alone.

    Confirmed and refuted need a 95 % interval wholly on one side; what it leaves undecided is open.
    """
    return [_vehicles(result), _cat_and_dog(result), _birds(result), _planes(result)] if result["is_cifar10"] else []


def _vehicles(result: Result) -> tuple[str, str, str]:
    """Cars and trucks above 97 %."""
    rows = [row for row in result["per_class"] if row["class"] in ("automobile", "truck") and row["support"]]
    ends = [row["recall_interval_95"] for row in rows]
    sure = len(rows) == 2 and min(low for low, _ in ends) > 0.97
    verdict = "confirmed" if sure else "refuted" if any(high < 0.97 for _, high in ends) else "open"
    shown = (f"{row['class']} {row['recall']:.1%} ({low:.1%} to {high:.1%})" for row, (low, high) in zip(rows, ends))
    return "Automobiles and trucks are recognised above 97 %", verdict, f"Recall: {', '.join(shown) or 'no such image'}."


def _cat_and_dog(result: Result) -> tuple[str, str, str]:
    """Cat and dog the main confusion; two counts differ beyond chance where their difference exceeds 1.96 of its deviation."""
    cat, dog, counts = result["classes"].index("cat"), result["classes"].index("dog"), result["confusion"]
    own = counts[cat][dog] + counts[dog][cat]
    other = next((pair for pair in result["most_confused_pairs"] if set(pair["classes"]) != {"cat", "dog"}), {"classes": ("any", "other"), "images": 0})
    z = (own - other["images"]) / max(1, own + other["images"]) ** 0.5
    return "Cat and dog are the main confusion", "open" if abs(z) <= 1.96 else "confirmed" if z > 0 else "refuted", (
        f"{own} of {result['errors']:,} errors are between cat and dog; {' and '.join(other['classes'])}, the largest other pair: {other['images']}.")


def _birds(result: Result) -> tuple[str, str, str]:
    """A bird's heat on its body, tested by what removing it does."""
    test = result["faithfulness"]["differences"]["bird"]
    sides = [side for control in CONTROLS for side in (-_side(test[control]["deletion"]), _side(test[control]["insertion"]))]
    against = " ".join(f"Against {name}: {_areas(test[control])}." for control, name in CONTROLS.items() if test[control]["deletion"]["n"])
    return "A bird's heat marks what decides (its body, not branches behind it)", _verdict(sides), (
        f"CIFAR-10 has no outlines of its birds, so this is tested by what removing the heat does, on {test['random']['deletion']['n']} birds: it must "
        f"do more than removing random places, and more than removing the middle. {against}".rstrip())


def _planes(result: Result) -> tuple[str, str, str]:
    """A plane taken for a ship because of the lower half of the image."""
    claim, test = "A plane is taken for a ship because of the (blue) lower half of the image", result["planes_as_ships"]
    heat, drop = test["heat_below"], test["drop"]
    if not heat["predicted"]["n"]:
        return claim, "open", f"{test['images']} planes were taken for ships, none with a heat map for both classes."
    sides = _side(heat["predicted"], 0.5), _side(drop["difference"])
    share = {key: f"{heat[key]['mean']:.1%}{in_brackets(heat[key], '.1%')}" for key in ("predicted", "true")}
    return claim, _verdict(sides), (
        f"{test['images']} planes were taken for ships. In the lower half lies {share['predicted']} of the heat for ship and {share['true']} of that for "
        f"airplane. Blanking the lower half takes {drop['lower']['mean']:.1%} off the probability of ship, the upper half {drop['upper']['mean']:.1%}; "
        f"the difference is {_points(drop['difference'])}. {'The two tests disagree. ' if sum(sides) == 0 != sides[0] else ''}Colour itself was not tested.")


def _verdict(sides: Sequence[int]) -> str:
    """All measures for the claim, or some against it and none for it, or neither."""
    return "confirmed" if min(sides) > 0 else "refuted" if min(sides) < 0 >= max(sides) else "open"


def _side(found: Mapping[str, Any], zero: float = 0.0) -> int:
    """1 or -1 where the whole interval lies above or below `zero`, else 0."""
    if found["low"] is None:
        return 0
    return (found["low"] > zero) - (found["high"] < zero)


def _signed(value: float, form: str) -> str:
    """A number with a true minus sign."""
    return format(value, form).replace("-", "−")


def in_brackets(found: Mapping[str, Any], form: str) -> str:
    """The ends of an interval in brackets."""
    return " (one image)" if found["low"] is None else f" ({_signed(found['low'], form)} to {_signed(found['high'], form)})"


def _points(found: Mapping[str, Any]) -> str:
    """A difference of fractions with its interval, in percentage points."""
    scaled = {key: None if found[key] is None else 100 * found[key] for key in ("mean", "low", "high")}
    return f"{_signed(scaled['mean'], '+.2f')} points{in_brackets(scaled, '+.2f')}"
