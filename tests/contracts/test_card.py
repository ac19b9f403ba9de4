"""The card: everything that the contract says is on it, as text and nothing but text."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from rlx.contracts import (
    Always,
    Chance,
    Contract,
    CVaR,
    Eventually,
    Expect,
    Nash,
    Stakeholder,
    Term,
    Until,
    card,
    certify,
    digest,
    new_key,
    sign,
    verify,
)
from rlx.contracts._card import in_words

x = Term("x", lambda b: b["x"], unit="score", range=(-1.0, 1.0))
y = Term("y", lambda b: b["y"], level="token")
EVIL = '<script>alert("x")</script> | `b` & $\\frac{1}{2}$'
CONTRACT = Contract(
    EVIL,
    terms=(x, y, Term(EVIL, lambda b: b["x"], unit=EVIL)),
    stakeholders=(Stakeholder("reader", {"x": 2.0, "y": -0.5}), Stakeholder(EVIL, {EVIL: 1.0}, weight=3.0)),
    aggregate=Nash(-3.0),
    constraints=(Chance(x > 0.5) <= 0.1, Expect(x) >= -0.5, CVaR(x, 0.75) <= 0.9, Always(y < 0.25)),
    provenance={EVIL: EVIL},
)


class Reader(HTMLParser):
    """Tags and text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.inside = [], "", 0
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.inside += tag == "svg"
        for name, value in attrs:
            assert not name.startswith("on")
            if name in ("href", "src", "xlink:href"):
                assert value.startswith("#"), value  # nothing is fetched

    def handle_endtag(self, tag):
        self.inside -= tag == "svg"

    def handle_data(self, data):
        if not self.inside:
            self.text += data


def test_what_the_contract_says_is_on_the_card():
    page = Reader(card(CONTRACT, checks=verify(CONTRACT), certificates=[certify(np.zeros(500), 0.1)]))
    for said in (EVIL, digest(CONTRACT), "2 x + -0.5 y", "Chance(x > 0.5) <= 0.1", "CERTIFIED", "PROVED", "score"):
        assert said in page.text
    assert "in at most 10% of texts x is above 0.5" in page.text
    assert page.tags.count("svg") == 3


def test_names_are_text():
    page = card(CONTRACT)
    assert "<script" not in page
    assert set(Reader(page).tags) & {"script", "img", "iframe", "object", "link"} == set()
    text = card(CONTRACT, format="markdown")
    assert "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    # a bar in a name is no new cell
    for row in rows:
        assert len(re.findall(r"(?<!\\)\|", row)) in (3, 4, 5, 6)


def test_the_same_contract_gives_the_same_card():
    assert card(CONTRACT) == card(CONTRACT)
    assert card(CONTRACT, format="markdown") == card(CONTRACT, format="markdown")


def test_a_signature_is_shown():
    signature = sign(CONTRACT, new_key())
    assert signature.public_key in Reader(card(CONTRACT, signature=signature)).text


NOT_SO = "in at least 90% of texts it is not so that"


@pytest.mark.parametrize(
    ("constraint", "said"),
    [
        (Expect(x) <= 0.5, "the mean of x is at most 0.5"),
        (CVaR(x, 0.75) >= 0.5, "the mean of the lowest 25% of x is at least 0.5"),
        (Chance(~Eventually(y > 0.5, 1, 3)) >= 0.9, f"{NOT_SO} at some token from 1 to 3 tokens on y is above 0.5"),
        (Always((y < 1.0) | (x >= 0.0), 2), "at every token from 2 tokens on y is below 1 or x is at least 0"),
        (Until(y < 1.0, y > 0.5), "in every text y is below 1 until y is above 0.5"),
    ],
    ids=str,
)
def test_constraints_in_words(constraint, said):
    contract = Contract("c", terms=(x, y), stakeholders=(Stakeholder("me", {"x": 1.0}),), constraints=(constraint,))
    assert in_words(contract.constraints[0]).removeprefix("in every text ") == said.removeprefix("in every text ")
    assert said in card(contract, format="markdown").replace("\\", "")


def test_other_formats_are_refused():
    with pytest.raises(ValueError, match="format: 'pdf'"):
        card(CONTRACT, format="pdf")
