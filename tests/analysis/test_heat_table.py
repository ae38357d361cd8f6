"""The published table of heat maps states what its measurements say."""
import json
import re

from conftest import ROOT

RESULTS = ROOT / "docs/results"


def numbers(value: object) -> set[str]:
    """Every number below a JSON value as the table writes it: signed, three decimals."""
    if isinstance(value, float | int):
        return {f"{value:+.3f}".replace("-", "−"), f"{100 * value:.1f}"}
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return set().union(*map(numbers, parts))


def test_every_number_of_the_table_was_measured() -> None:
    measured = json.loads((RESULTS / "heat-maps.json").read_text(encoding="utf-8"))
    table = (RESULTS / "heat-maps.md").read_text(encoding="utf-8")
    shown = re.findall(r"[+−]\d\.\d{3}|\d+\.\d(?= %)", table)
    assert len(shown) > 60 and set(shown) <= numbers(measured)


def test_the_heat_maps_that_are_shown_beat_chance_and_the_centre() -> None:
    """By both measures, on every network, with intervals that leave out 0."""
    measured = json.loads((RESULTS / "heat-maps.json").read_text(encoding="utf-8"))
    assert len(measured["test"]) == 4
    for network in measured["test"]:
        for control in ("chance", "centre"):
            gain = network["HiResCAM minus"][control]
            assert gain["deletion"]["high"] < 0 < gain["insertion"]["low"], network["network"]
