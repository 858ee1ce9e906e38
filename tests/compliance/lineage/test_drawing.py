"""The picture: well-formed, readable, told in words too, and drawn whatever the events say."""

from __future__ import annotations

import re
from uuid import UUID
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.compliance.lineage import Dataset, Event, names, new_run_id
from foedus.compliance.lineage import events as e
from foedus.compliance.lineage import facets as f
from foedus.compliance.lineage.drawing import HEIGHT, WIDTH, svg
from foedus.compliance.lineage.graph import Graph, graph

SVG = "{http://www.w3.org/2000/svg}"
STUDY = "ab" * 32
PARENT = (UUID(int=7), "foedus://server", "study")


def parsed(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)  # noqa: S314 - our own


def event(job: str, inputs: list[Dataset], outputs: list[Dataset], **more: object) -> e.f.Json:
    made = Event(new_run_id(), names.job(STUDY, job), "COMPLETE", PARENT, inputs, outputs, **more)  # type: ignore[arg-type]
    return e.to_json(made, "foedus://server", "urn:x")


def a_study() -> list[e.f.Json]:
    parties, model = ("shop-a", "shop-b"), names.document("model", "server", "cd" * 32)
    updates = {p: [names.update(p, STUDY, "1", n) for n in (1, 2, 3)] for p in parties}
    events = [event(f"silo {p}", [names.table(p, "orders")], updates[p]) for p in parties]
    sums = [names.total("server", STUDY, "1", n) for n in (1, 2, 3)]
    events += [event("secure sum", [updates[p][n] for p in parties], [sums[n]]) for n in (0, 1, 2)]
    return [*events, event("release", [*sums, names.table("shop-a", "orders")], [model])]


def test_rounds_are_one_box_and_words_say_what_the_picture_shows() -> None:
    drawn = Graph.of(a_study())
    assert sorted((b.kind, b.party, len(b.names)) for b in drawn.boxes.values()) == [
        ("model", "server", 1), ("sum", "server", 3), ("table", "shop-a", 1), ("table", "shop-b", 1),
        ("update", "shop-a", 3), ("update", "shop-b", 3),
    ]  # fmt: skip
    picture = parsed(svg(drawn, "Where a <model> comes from"))
    title, told = picture.findtext(f"{SVG}title"), picture.findtext(f"{SVG}desc")
    assert title == "Where a <model> comes from" and picture.get("role") == "img"
    assert "3 sums of server from 3 masked updates of shop-a, 3 masked updates of shop-b." in str(told)
    shown = "".join(t.text or "" for t in picture.iter(f"{SVG}text"))
    for word in (
        "orders",
        "3 masked updates",
        "as signed by shop-b",
        "source table",
        "secure sum",
        "released",
    ):
        assert word in shown
    assert len(picture.findall(f"{SVG}path")) == len(drawn.edges) == 6
    assert "prefers-color-scheme:dark" in (picture.findtext(f"{SVG}style") or "")


def boxes(picture: ElementTree.Element) -> list[tuple[float, float]]:
    found = [g.find(f"{SVG}rect") for g in picture.iter(f"{SVG}g")]
    return [(float(r.get("x", "nan")), float(r.get("y", "nan"))) for r in found if r is not None]


def test_boxes_are_apart_in_the_frame_and_arrows_go_right() -> None:
    picture = parsed(svg(Graph.of(a_study()), "t"))
    places = boxes(picture)
    for i, (x, y) in enumerate(places):
        assert (
            0 <= x <= float(picture.get("width", 0)) - WIDTH
            and 0 <= y <= float(picture.get("height", 0)) - HEIGHT
        )
        assert all(abs(x - a) >= WIDTH or abs(y - b) >= HEIGHT for a, b in places[:i])
    for path in picture.findall(f"{SVG}path"):
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.get("d", ""))]
        assert numbers[-2] > numbers[0]


def test_what_failed_is_shown_with_its_reason() -> None:
    failed = event(
        "round",
        [names.table("shop-a", "orders")],
        [],
        facets={"errorMessage": f.error("COHORT_TOO_SMALL: no")},
    )
    drawn = Graph.of([{**failed, "eventType": "FAIL"}])
    assert [b.label for b in drawn.boxes.values() if b.kind == "failed"] == ["round failed"]
    picture = svg(drawn, "t")
    assert "COHORT_TOO_SMALL: no" in picture and "stroke-dasharray" in picture


def test_the_silos_own_word_takes_the_place_of_the_servers() -> None:
    own = e.to_json(Event(new_run_id(), "x/round", "COMPLETE", PARENT, [], []), "foedus://shop-a", "urn:x")
    drawn = Graph.of([*a_study(), own])
    assert drawn.boxes[("foedus://shop-b", "masked updates")].jobs == {"silo shop-b"}
    assert ("foedus://shop-a", "masked updates") in drawn.boxes
    assert not drawn.boxes[("foedus://shop-a", "masked updates")].jobs


def test_nothing_is_drawn_too() -> None:
    assert "Nothing is known." in svg(Graph.of([]), "t") and graph([]) == ([], [])


NAMES = st.text(st.characters(exclude_categories=()), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.lists(NAMES, max_size=3), NAMES, st.lists(NAMES, max_size=3)), max_size=6), NAMES
)
def test_any_names_and_circles_give_a_picture(
    rows: list[tuple[list[str], str, list[str]]], title: str
) -> None:
    events = [
        {
            "eventType": "COMPLETE",
            "run": {"runId": str(UUID(int=i))},
            "job": {"namespace": "n", "name": job},
            "inputs": [{"namespace": "n", "name": name} for name in inputs],
            "outputs": [{"namespace": "n", "name": name} for name in outputs],
        }
        for i, (inputs, job, outputs) in enumerate(rows)
    ]
    drawn = Graph.of(events)
    picture = parsed(svg(drawn, title))
    assert len(boxes(picture)) == len(drawn.boxes)


def test_jobs_are_nodes_for_whoever_wants_them() -> None:
    nodes, edges = graph(a_study())
    assert ("job", "server/secure sum") in nodes and ("dataset", "shop-a/masked updates") in nodes
    assert (("job", "server/release"), ("dataset", f"server/model {'cd' * 4}…")) in edges
