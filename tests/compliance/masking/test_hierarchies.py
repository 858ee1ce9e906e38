"""A hierarchy that is none is refused with a sentence; builders put every value where it belongs."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foedus.compliance.masking import hierarchies
from foedus.compliance.masking.domains import MISSING, Domain, Loss
from foedus.compliance.masking.hierarchies import Hierarchy
from foedus.errors import InputError

CITIES = [["Ghent", "Flanders", "*"], ["Bruges", "Flanders", "*"], ["Liège", "Wallonia", "*"]]


def labels(tree: Hierarchy, value: str) -> list[str]:
    at = tree.values.index(value)
    return [tree.labels[level][tree.codes[level, at]] for level in range(tree.levels)]


@pytest.mark.parametrize("text", ["Ghent;East, Flanders;*\nBruges;West;*\n", "Ghent,East,*\r\nBruges,West,*"])
def test_a_file_is_read_with_either_separator(tmp_path: Path, text: str) -> None:
    (tmp_path / "h.csv").write_text("\ufeff" + text, encoding="utf-8")
    tree = hierarchies.read(tmp_path / "h.csv")
    assert tree.values == ("Ghent", "Bruges") and tree.levels == 3 and tree.labels[2] == ("*",)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "has no rows"),
        ([["a", "*"], ["b"]], "row 2 has 1 levels where row 1 has 2"),
        ([["a", "x"], ["a", "y"]], "row 2 gives 'a' other labels"),
        (
            [["a", "x", "1"], ["b", "x", "2"]],
            "level 2 is no coarsening: 'x' of level 1 becomes '1' and, for 'b', '2'",
        ),
        ([["a", "x", "*"], ["b", "a", "*"]], "'a' means one set of values at level 0 and another at level 1"),
        ([["a", "*"], ["b", "x"]], r"'\*' at level 1 does not cover every value"),
    ],
)
def test_what_is_no_hierarchy_is_refused(rows: list[list[str]], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Hierarchy.of(rows, "h.csv")


def test_the_same_row_twice_is_no_contradiction() -> None:
    assert Hierarchy.of([*CITIES, CITIES[0]]).values == ("Ghent", "Bruges", "Liège")


def test_a_lacking_value_is_named() -> None:
    with pytest.raises(InputError, match="city: has no row for 'Namur'"):
        Hierarchy.of(CITIES).of_values(["Ghent", "Namur"], "city")


def test_of_values_keeps_labels_and_takes_the_order() -> None:
    tree = Hierarchy.of(CITIES).of_values(["Liège", "Ghent"])
    assert tree.values == ("Liège", "Ghent") and labels(tree, "Ghent") == ["Ghent", "Flanders", "*"]


@pytest.mark.parametrize("rows", [CITIES, [r[:2] for r in CITIES], [r[:1] for r in CITIES]])
def test_a_missing_value_joins_at_the_top(rows: list[list[str]]) -> None:
    tree = Hierarchy.of(rows).with_own_value(MISSING)
    assert labels(tree, MISSING)[-1] == "*" == labels(tree, "Ghent")[-1]
    assert set(labels(tree, MISSING)[:-1]) == {MISSING}


def test_an_interval_holds_its_lower_border() -> None:
    tree = hierarchies.intervals(["0", "19.5", "20", "25"], [10, 20])
    assert labels(tree, "20") == ["20", "[20, 30)", "[20, 40)", "*"]
    assert labels(tree, "19.5") == ["19.5", "[10, 20)", "[0, 20)", "*"]
    assert labels(tree, "0")[1] == "[0, 10)"


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20, unique=True),
    st.sampled_from([0.1, 0.3, 1.0, 7.0]),
    st.sampled_from([0.0, 0.05, -3.0]),
)
def test_a_number_lies_in_its_interval(numbers: list[float], width: float, origin: float) -> None:
    texts = list(dict.fromkeys(map(repr, numbers)))
    tree = hierarchies.intervals(texts, [width, 2 * width], origin)
    for text in texts:
        for label in labels(tree, text)[1:3]:
            low, high = map(float, label.strip("[)").split(","))
            assert low - 1e-5 <= float(text) <= high + 1e-5


@pytest.mark.parametrize("widths", [[10, 15], [10, 5], [0], [-1]])
def test_widths_must_nest(widths: list[float]) -> None:
    with pytest.raises(InputError, match="do not nest"):
        hierarchies.intervals(["1"], widths)


def test_words_have_no_interval() -> None:
    with pytest.raises(InputError, match="'old' is not a number"):
        hierarchies.intervals(["1", "old"], [10])


def test_ordered_values_side_by_side() -> None:
    tree = hierarchies.ordered(["S", "M", "L", "XL", "XXL"], [2, 4])
    assert labels(tree, "M") == ["M", "S – M", "S – XL", "*"]
    assert labels(tree, "XXL") == ["XXL", "XXL", "XXL", "*"]
    with pytest.raises(InputError, match="do not nest"):
        hierarchies.ordered(["S", "M"], [2, 3])
    with pytest.raises(InputError, match="twice"):
        hierarchies.ordered(["S", "S"], [2])


def test_redaction_from_either_side() -> None:
    assert labels(hierarchies.redaction(["123", "124"]), "123") == ["123", "12*", "1**", "*"]
    assert labels(hierarchies.redaction(["123", "223"], from_left=True), "123") == ["123", "*23", "**3", "*"]
    with pytest.raises(InputError, match="has 2 characters where '123' has 3"):
        hierarchies.redaction(["123", "12"])


def test_days_by_month_and_year() -> None:
    tree = hierarchies.dates(["2026-11-25", "2025-01-01T10:00:00"], ["month", "quarter", "year", "decade"])
    assert labels(tree, "2026-11-25") == ["2026-11-25", "2026-11", "2026-Q4", "2026", "2020s", "*"]
    with pytest.raises(InputError, match="choose growing ones"):
        hierarchies.dates(["2026-11-25"], ["year", "month"])
    with pytest.raises(InputError, match="'soon' does not begin with a day"):
        hierarchies.dates(["soon"], ["year"])


def test_losses_by_leaves_and_by_extent() -> None:
    values = ("0", "10", "20", "100")
    tree = hierarchies.intervals(values, [50])
    by_leaves, by_extent = Domain("a", values, tree), Domain("a", values, tree, Loss.EXTENT)
    assert by_leaves.label_loss("[0, 50)") == pytest.approx(2 / 3)
    assert by_extent.label_loss("[0, 50)") == pytest.approx(0.2)
    for domain in (by_leaves, by_extent):
        assert domain.label_loss("*") == 1 and domain.label_loss("100") == 0
        assert domain.covers("10..100").tolist() == [False, True, True, True]
        assert domain.covers("0|20").tolist() == [True, False, True, False]
    with pytest.raises(InputError, match="no label of this column"):
        by_leaves.covers("30..40")
    with pytest.raises(InputError, match="no extent"):
        Domain.plain("a", ["x", "y"], Loss.EXTENT)


def test_a_missing_number_lies_a_whole_range_from_all_others() -> None:
    domain = Domain.plain("a", ["0", "10", MISSING], Loss.EXTENT)
    assert domain.label_loss(f"10..{MISSING}") == 1 and domain.label_loss(MISSING) == 0
