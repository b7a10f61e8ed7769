import base64
import hashlib
import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import plotly.graph_objects as go
import pytest
from rich.console import Console

from noisescape.report import Figure, Interactive, Section, Table, render
from noisescape.report.page import Answer, Answers, Control
from noisescape.runs.run import Run

HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
SVG = '<svg xmlns="http://www.w3.org/2000/svg"><rect id="a" width="1" height="1"/></svg>'
FETCHING = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "background"}


class Page(HTMLParser):
    """Every element's tag and attributes, and the text of each script."""

    def __init__(self, html):
        super().__init__()
        self.elements = []
        self.scripts = []
        self.text = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.lasttag == "script":
            self.scripts[-1] += data
        else:
            self.text.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def addresses(self):
        return [value for _, attributes in self.elements for key, value in attributes.items() if key in FETCHING]


@pytest.fixture(scope="module")
def svg(tmp_path_factory):
    run = Run.create(tmp_path_factory.mktemp("run"), experiment="toy", config={}, seed=0)
    figure, axes = plt.subplots()
    axes.plot([0, 1])
    return run.save_figure("line", figure)


def interactive():
    return Interactive.from_plotly(go.Figure(go.Scatter(y=[1, 2])), "moves")


def page_with(*items, **changes):
    arguments = {"title": "T", "opening": "L", "sections": [Section("S", "text", items)], "facts": {"seed": "0"}}
    return render(**arguments | changes)


def test_everything_is_inside_the_page(svg):
    html = page_with(Table(["a"], [["1"]], "t"), Figure(svg, "f"), Figure(SVG, "g"), interactive())
    page = Page(html)
    assert page.addresses
    assert all(address.startswith(("data:", "#")) for address in page.addresses)
    assert page.all("link") == page.all("iframe") == []
    [style] = re.findall(r"<style>(.*?)</style>", html[: html.index("</head>")], re.DOTALL)[:1]
    assert "url(" not in style
    assert "@import" not in style


def test_the_browser_is_made_to_fetch_nothing():
    policies = [
        meta["content"]
        for html in (page_with(), page_with(interactive()))
        for meta in Page(html).all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 2
    for policy in policies:
        assert policy.startswith("default-src 'none'")
        assert "http" not in policy
        assert "*" not in policy
    assert "script-src" not in policies[0]


def test_a_script_that_a_page_brings_is_the_only_one_allowed():
    control = Control('<input type="range">', "let a = 1;", "turns")
    html = page_with(control, control)
    digest = base64.b64encode(hashlib.sha256(b"let a = 1;").digest()).decode()
    [policy] = [
        meta["content"] for meta in Page(html).all("meta") if "content" in meta and "src" in meta["content"]
    ]
    assert policy.endswith(f"; script-src 'sha256-{digest}'")
    assert [script.strip() for script in Page(html).scripts] == ["let a = 1;"]
    assert html.count('<input type="range">') == 2
    with pytest.raises(ValueError, match="fetches from the network"):
        Control('<img src="https://example.org/x.png">', "", "")


def test_answers_carry_their_verdict_in_words():
    answers = Answers([Answer(HOSTILE, HOSTILE, HOSTILE, HOSTILE, "bad"), Answer("q", "a", "s", "v")], "two")
    html = page_with(answers)
    page = Page(html)
    assert page.all("script") == page.all("img") == []
    assert sum(text == HOSTILE for text in page.text) == 4
    assert [item["class"] for item in page.all("li")] == ["bad", "plain"]


def test_items_stand_side_by_side_where_asked():
    sections = [Section("S", "", [Figure(SVG, "f")], side_by_side=asked) for asked in (True, False)]
    assert [
        attributes
        for attributes in Page(page_with(sections=sections)).all("div")
        if "side-by-side" in attributes.values()
    ] == [{"class": "side-by-side"}]


def test_hostile_text_is_escaped_everywhere():
    html = render(
        HOSTILE,
        HOSTILE,
        [
            Section(HOSTILE, HOSTILE, [Table([HOSTILE, "n"], [[HOSTILE, "1"]], HOSTILE), Figure(SVG, HOSTILE)]),
            Section("other", ""),
        ],
        {HOSTILE: HOSTILE},
    )
    page = Page(html)
    assert page.all("script") == []
    [image] = page.all("img")
    assert image["alt"] == HOSTILE
    assert not any("onerror" in attributes for _, attributes in page.elements)
    # title, heading, lead, contents, section, paragraph, column, cell, two captions, fact's name and value
    assert sum(text == HOSTILE for text in page.text) == 12


def test_plotly_is_included_once_and_only_if_needed():
    assert Page(page_with(Figure(SVG, "f"))).scripts == []
    scripts = Page(page_with(interactive(), interactive())).scripts
    assert sum(len(script) > 1_000_000 for script in scripts) == 1
    assert len(scripts[0]) > 1_000_000  # before the fragments that call it
    assert sum("Plotly.newPlot" in script for script in scripts[1:]) == 2


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.plot.ly/plotly.min.js"></script>',
        "<link rel=stylesheet href=//example.org/a.css>",
        "<IMG SRC = 'http://example.org/a.png'>",
    ],
)
def test_a_fragment_that_fetches_is_refused(html):
    with pytest.raises(ValueError, match="include_plotlyjs=False"):
        Interactive(html, "caption")


def test_two_figures_with_the_same_ids_do_not_share_a_document(svg):
    html = page_with(Figure(svg, "one"), Figure(svg.read_text(), "two"))
    page = Page(html)
    images = page.all("img")
    assert [image["alt"] for image in images] == ["one", "two"]
    assert page.all("svg") == []
    for image in images:
        assert base64.b64decode(image["src"].partition("base64,")[2]) == svg.read_bytes()
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_a_path_given_as_text_is_refused(svg):
    with pytest.raises(ValueError, match=r"pathlib\.Path"):
        page_with(Figure(str(svg), "f"))


def test_contents_lead_to_the_sections():
    page = Page(page_with(sections=[Section("One", ""), Section("Two", "")]))
    targets = [attributes["id"] for attributes in page.all("section")]
    assert [attributes["href"] for attributes in page.all("a")] == [f"#{target}" for target in targets]
    assert len(set(targets)) == 2


def test_blank_lines_part_paragraphs():
    page = Page(page_with(opening="", sections=[Section("S", "one\nstill one\n\n two \n")]))
    assert len(page.all("p")) == 2


def test_facts_fold_away_at_the_end():
    html = page_with(facts={"seed": "12345"})
    assert html.index("<details>") > html.index("</main>")
    assert "<dt>seed</dt><dd>12345</dd>" in html
    assert "<details>" not in page_with(facts={})


def test_page_says_its_language_and_fits_a_phone():
    page = Page(page_with())
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["1", "-2.5", "−3"], True),
        (["1.0 ± 0.2", "3e-05", "—"], True),
        (["0.42 [0.39, 0.45]", "1.2×10⁻³", "nan"], True),
        (["0.4 ± ?", "3"], True),
        (["12 s", "45.0%", "1,797"], True),
        (["gd", "1"], False),
        (["2nd moment"], False),
        (["—", ""], False),
        ([], False),
    ],
)
def test_columns_of_numbers_are_not_taken_for_text(cells, numeric):
    assert Table(["x"], [[cell] for cell in cells], "").numeric == (numeric,)


def test_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="row 1 has 1 cells for 2 columns"):
        Table(["a", "b"], [["1", "2"], ["1"]], "")


TWO = Table(
    ["kind", "name", "loss", "more"], [["a", "gd", "1.5", "x"], ["a", "sgd", "diverged", "y"]], "c", ["more"]
)


def test_a_table_may_show_labels_in_place_of_names() -> None:
    labelled = TWO.labelled({"gd": "GD", "kind": "never: not a cell"})
    assert labelled.rows == [["a", "GD", "1.5", "x"], ["a", "sgd", "diverged", "y"]]
    assert (labelled.columns, labelled.caption, labelled.wide) == (TWO.columns, TWO.caption, TWO.wide)


def test_a_terminal_gets_the_table_but_for_its_wide_columns() -> None:
    console = Console(width=60)
    with console.capture() as capture:
        console.print(TWO.to_rich("heading"))
    lines = [line.split() for line in capture.get().splitlines()]
    assert lines[:2] == [["heading"], ["name", "loss"]]
    assert lines[3:] == [["gd", "1.5"], ["sgd", "diverged"], ["c", "In", "every", "row"], ["kind", "is", "a."]]


REPEATING = Table(
    ["geometry", "dynamics", "data", "n", "note"],
    [["flat", "gd", "digits", "5", ""], ["flat", "sgd", "digits", "5", "–"], ["steep", "gd", "digits", "5", ""]],
    "Rates.",
)


def test_what_all_rows_say_is_said_once() -> None:
    condensed = REPEATING.condensed()
    assert condensed.columns == ["geometry", "dynamics", "n"]
    assert condensed.rows == [["flat", "gd", "5"], ["flat", "sgd", "5"], ["steep", "gd", "5"]]
    assert condensed.caption == "Rates. In every row data is digits."
    assert condensed.condensed() == condensed
    alone = Table(["a", "b"], [["x", "y"]], "One row has nothing to repeat.")
    assert alone.condensed() == alone
    blank = Table(["a"], [["–"], [""]], "Nothing at all.")
    assert blank.condensed() == blank


def test_rows_of_one_group_share_its_name() -> None:
    assert REPEATING.groups == [2, 0, 1]
    rows = Page(page_with(REPEATING)).all("th")
    assert [row for row in rows if row.get("scope") != "col"] == [
        {"scope": "rowgroup", "rowspan": "2"},
        {"scope": "row"},
    ]
    console = Console(width=60)
    with console.capture() as capture:
        console.print(REPEATING.to_rich("heading"))
    lines = [line.split() for line in capture.get().splitlines()]
    assert [line[0] for line in lines if "5" in line] == ["flat", "sgd", "steep"]
