"""The contract card: what a contract says, to read and to print."""

import html
import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from ._certify import Certificate
from ._consistency import Check, utility_ranges
from ._constraints import (
    Always,
    And,
    Chance,
    Constraint,
    CVaR,
    Event,
    Eventually,
    Expect,
    Formula,
    Not,
    Or,
    name_of,
)
from ._contract import Contract, all_terms, check_contract
from ._digest import digest
from ._sign import Signature

Table = tuple[list[str], list[list[str]]]
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#555555")  # Okabe and Ito
_RULES = {
    "weighted_sum": "the sum of weight times utility",
    "nash": "the weighted sum of the logarithms of what each gains over having no agreement (Nash)",
    "max_min": "the utility of the worst off, smoothed",
    "leximin": "the worst off first, then the next (leximin)",
    "owa": "a weighted mean of utilities in order, the least first (OWA)",
    "ces": "a power mean of utilities (CES)",
    "borda": "the mean share of weight that prefers a text to another of its group (Borda)",
    "copeland": "pairwise majorities won minus lost within a group of texts (Copeland)",
    "maximal_lottery": "the expected majority margin against the maximal lottery of a group of texts",
}
_STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2rem; border-bottom: 1px solid #8888; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .25rem .6rem .25rem 0; }
th { border-bottom: 1px solid #8888; font-weight: 600; } td { vertical-align: top; overflow-wrap: anywhere; }
code { overflow-wrap: anywhere; } figure { margin: 1rem 0; background: #fff; padding: .5rem; }
svg { width: 100%; height: auto; } .REFUTED { color: #d55e00; font-weight: 600; } .UNKNOWN { opacity: .7; }
@media print { body { margin: 0; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


def card(
    contract: Contract,
    *,
    checks: Sequence[Check] | None = None,
    certificates: Sequence[Certificate] = (),
    signature: Signature | None = None,
    format: Literal["html", "markdown"] = "html",
) -> str:
    """The contract as a page: who wants what, what is required, what is proved, with plots of utilities and limits.

    Args:
      contract: what to show.
      checks: from `verify`.
      certificates: from `certify`.
      signature: from `sign`; shown, not verified.
      format: "html" is one file with its plots inside, "markdown" has no plots.

    Returns:
      The text. The same contract gives the same text.

    Raises:
      ModuleNotFoundError: html needs matplotlib; says which extra has it.

    Example:
      >>> from rlx.contracts import Contract, Stakeholder, Term
      >>> short = Term("short", "rlx.length_share@1")
      >>> contract = Contract("brief", terms=(short,), stakeholders=(Stakeholder("me", {"short": -1.0}),))
      >>> card(contract, format="markdown").splitlines()[0]
      '# brief'
    """
    check_contract("contract", contract)
    if format not in ("html", "markdown"):
        raise ValueError(f"format: {format!r} is not one of 'html', 'markdown'")
    sections = _sections(contract, checks, certificates, signature)
    if format == "markdown":
        lines = [f"# {_plain(contract.name)}", "", f"Version {_plain(contract.version)}, `{digest(contract)}`"]
        for title, text, table in sections:
            lines += ["", f"## {title}", *(["", _plain(text)] if text else []), *_markdown(table)]
        return "\n".join(lines) + "\n"
    plots = _plots(contract)
    parts = [f"<h1>{html.escape(contract.name)}</h1>"]
    parts.append(f"<p>Version {html.escape(contract.version)}, <code>{digest(contract)}</code></p>")
    for title, text, table in sections:
        parts.append(f"<h2>{title}</h2>" + (f"<p>{html.escape(text)}</p>" if text else "") + _html(table))
        parts += [f"<figure>{svg}</figure>" for svg in plots.get(title, [])]
    head = f'<meta charset="utf-8"><title>{html.escape(contract.name)}</title><style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def _sections(
    contract: Contract,
    checks: Sequence[Check] | None,
    certificates: Sequence[Certificate],
    signature: Signature | None,
) -> list[tuple[str, str, Table | None]]:
    terms = all_terms(contract)
    rule = contract.aggregate
    kind = getattr(rule, "kind", "")
    people = [
        [s.name, " + ".join(f"{value:g} {name}" for name, value in s.utility.items()), s.unit or "-", f"{s.weight:g}"]
        for s in contract.stakeholders
    ]
    measured = [
        [t.name, t.unit or "-", f"{t.range[0]:g} to {t.range[1]:g}", t.level, t.fn if isinstance(t.fn, str) else "code"]
        for t in terms.values()
    ]
    found: list[tuple[str, str, Table | None]] = [
        ("What is measured", "", (["term", "unit", "range", "level", "function"], measured)),
        ("Who wants what", "", (["stakeholder", "utility", "unit", "weight"], people)),
        ("How wishes are put together", f"{type(rule).__name__}: {_RULES.get(kind, 'a rule of its own')}.", None),
    ]
    required = [[in_words(c), f"`{c}`".strip("`"), f"{c.multiplier:g}"] for c in contract.constraints]
    table = (["in words", "constraint", "price at the start"], required)
    found.append(("What is required", "" if required else "Nothing.", table if required else None))
    if checks is not None:
        rows = [[c.verdict, c.name, c.detail] for c in checks]
        found.append(("What is proved", "UNKNOWN is not passed.", (["verdict", "check", "detail"], rows)))
    if contract.tests:
        rows = [[e.name, f"{len(next(iter(e.batch.values())))} texts"] for e in contract.tests]
        found.append(("Tests that it carries", "", (["test", "size"], rows)))
    if certificates:
        rows = [
            [c.verdict, f"[{c.lower:.4g}, {c.upper:.4g}]", f"{c.threshold:g}", str(c.n), f"{c.alpha:g}"]
            for c in certificates
        ]
        text = "Bounds of mean costs, valid at every look; they speak of the sampled distribution and nothing else."
        found.append(("What samples certify", text, (["verdict", "mean cost in", "threshold", "n", "alpha"], rows)))
    if contract.provenance:
        rows = [[str(name), str(value)] for name, value in contract.provenance.items()]
        found.append(("Where it is from", "", (["what", "value"], rows)))
    if signature is not None:
        rows = [["digest", signature.digest], ["public key", signature.public_key], ["signature", signature.signature]]
        found.append(("Who signed it", "Verify it with a key that you trust.", ([signature.algorithm, ""], rows)))
    return found


def in_words(constraint: Constraint) -> str:
    """A constraint as a sentence."""
    of, limit = constraint.of, constraint.limit
    bound = "at most" if constraint.relation == "<=" else "at least"
    match of:
        case Expect():
            return f"the mean of {name_of(of.term)} is {bound} {limit:g}"
        case CVaR():
            worst = "highest" if constraint.relation == "<=" else "lowest"
            return f"the mean of the {worst} {100 * (1 - of.level):g}% of {name_of(of.term)} is {bound} {limit:g}"
        case Chance():
            return f"in {bound} {100 * limit:g}% of texts {_said(of.event)}"
        case _:
            return f"in every text {_said(of)}"


def _said(of: Formula) -> str:
    match of:
        case Event():
            how = {"<": "is below", "<=": "is at most", ">": "is above", ">=": "is at least"}[of.relation]
            return f"{name_of(of.term)} {how} {of.value:g}"
        case Not():
            return f"it is not so that {_said(of.of)}"
        case And() | Or():
            return (" and " if isinstance(of, And) else " or ").join(_said(part) for part in of.parts)
        case Always() | Eventually():
            when = "at every token" if isinstance(of, Always) else "at some token"
            return f"{when}{_when(of)} {_said(of.of)}"
    until: Any = of
    return f"{_said(until.left)} until{_when(until)} {_said(until.right)}"


def _when(of: Any) -> str:
    if of.first == 0 and of.last is None:
        return ""
    return f" from {of.first} " + ("tokens on" if of.last is None else f"to {of.last} tokens on")


def _markdown(table: Table | None) -> list[str]:
    if table is None:
        return []
    head, rows = table
    line = lambda cells: "| " + " | ".join(_plain(cell) for cell in cells) + " |"  # noqa: E731
    return ["", line(head), "|" + "---|" * len(head), *(line(row) for row in rows)]


def _plain(text: str) -> str:
    """Text that is only text in Markdown, too."""
    for mark in "\\`*_{}[]<>#|~":
        text = text.replace(mark, f"\\{mark}" if mark not in "<>" else {"<": "&lt;", ">": "&gt;"}[mark])
    return " ".join(text.split())


def _html(table: Table | None) -> str:
    if table is None:
        return ""
    head, rows = table
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = ""
    for row in rows:
        mark = f' class="{row[0]}"' if row[0] in ("REFUTED", "UNKNOWN") else ""
        body += f"<tr{mark}>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


# plots


def _plots(contract: Contract) -> dict[str, list[str]]:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("the plots of a card need matplotlib: pip install 'rlx[plot]'") from error
    settings = {"svg.hashsalt": "rlx", "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False}
    with matplotlib.rc_context({**settings, "axes.spines.right": False, "text.parse_math": False}):
        found = {"Who wants what": [_svg(_utility_figure(contract))]}
        figure = _aggregate_figure(contract)
        if figure is not None:
            found["How wishes are put together"] = [_svg(figure)]
        figure = _constraint_figure(contract)
        if figure is not None:
            found["What is required"] = [_svg(figure)]
    return found


def _svg(figure: Any) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _figure(rows: int, height: float, margin: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, margin + height * rows), layout="constrained")
    return figure, figure.add_subplot()


def _utility_figure(contract: Contract) -> Any:
    """Where each utility can be, if each term takes any value of its range, and what each term adds at most."""
    figure, axes = _figure(len(contract.stakeholders), 0.4, 0.9)
    terms, names = all_terms(contract), list(all_terms(contract))
    for row, stakeholder in enumerate(contract.stakeholders):
        left = right = 0.0
        for name, value in stakeholder.utility.items():
            ends = sorted(value * end for end in terms[name].range if math.isfinite(end))
            low, high = (min(ends[0], 0.0), max(ends[-1], 0.0)) if ends else (0.0, 0.0)
            colour = _COLOURS[names.index(name) % len(_COLOURS)]
            for start, width in ((right, high), (left, low)):
                axes.barh(row, width, left=start, color=colour, edgecolor="white", height=0.6)
                if len(names) > len(_COLOURS) and width:  # colours repeat: the names are in the bars
                    middle = start + width / 2
                    axes.text(middle, row, _short(name, 8), ha="center", va="center", fontsize=6, clip_on=True)
            left, right = left + low, right + high
    axes.set_yticks(range(len(contract.stakeholders)), [_short(s.name) for s in contract.stakeholders])
    axes.invert_yaxis()
    axes.axvline(0.0, color="#555555", linewidth=0.8)
    axes.set_xlabel("utility that each term can add or take, by its declared range")
    used = [name for name in names if any(name in s.utility for s in contract.stakeholders)]
    if len(names) <= len(_COLOURS):
        handles = [_patch(_COLOURS[names.index(name)]) for name in used]
        figure.legend(handles, [_short(name) for name in used], loc="outside upper center", ncols=4, frameon=False)
    return figure


def _aggregate_figure(contract: Contract) -> Any:
    """The value of a text as one utility goes from its lowest to its highest, the others in the middle."""
    rule = contract.aggregate
    ranges = np.asarray(utility_ranges(contract), np.float32)
    if getattr(rule, "across_texts", False) or not np.all(np.isfinite(ranges)):
        return None
    figure, axes = _figure(1, 2.4, 0.6)
    params = {n: jnp.asarray(v) for n, v in rule.init([s.name for s in contract.stakeholders]).items()}
    weights = jnp.asarray([s.weight for s in contract.stakeholders], jnp.float32)
    place = np.linspace(0.0, 1.0, 65, dtype=np.float32)
    for k, stakeholder in enumerate(contract.stakeholders[: len(_COLOURS)]):
        utilities = np.tile(ranges.mean(axis=1, dtype=np.float32), (65, 1))
        utilities[:, k] = ranges[k, 0] + place * (ranges[k, 1] - ranges[k, 0])
        value = np.asarray(rule.apply(jnp.asarray(utilities), weights, params))
        style = ("-", "--", "-.", ":")[k % 4]
        axes.plot(100 * place, value, color=_COLOURS[k], linestyle=style, label=_short(stakeholder.name))
    axes.set_xlabel("one utility, in % of its range; the others in the middle of theirs")
    axes.set_ylabel("value of the text")
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _constraint_figure(contract: Contract) -> Any:
    """The allowed part of what each constraint limits."""
    rows = [(str(c), *span) for c in contract.constraints if (span := _span(contract, c)) is not None]
    if not rows:
        return None
    figure, axes = _figure(len(rows), 0.45, 0.9)
    for row, (_, low, high, limit, below) in enumerate(rows):
        edge = float(np.clip((limit - low) / (high - low), 0.0, 1.0))
        allowed, rest = ((0.0, edge), (edge, 1.0)) if below else ((edge, 1.0), (0.0, edge))
        axes.barh(row, allowed[1] - allowed[0], left=allowed[0], color="#56b4e9", height=0.55)
        axes.barh(row, rest[1] - rest[0], left=rest[0], color="white", edgecolor="#d55e00", hatch="////", height=0.55)
        axes.text(-0.01, row, f"{low:g}", ha="right", va="center", fontsize=8)
        axes.text(1.01, row, f"{high:g}", ha="left", va="center", fontsize=8)
        axes.text(edge, row - 0.3, f"{limit:g}", ha="center", va="bottom", fontsize=8)
    axes.set_yticks(range(len(rows)), [_short(text, 44) for text, *_ in rows])
    axes.tick_params(axis="y", length=0, pad=22)
    axes.set(xlim=(-0.02, 1.05), ylim=(len(rows) - 0.4, -0.75), xticks=[])
    axes.spines[["left", "bottom"]].set_visible(False)
    names = ["allowed", "not allowed"]
    handles = [_patch("#56b4e9"), _patch("white", edgecolor="#d55e00", hatch="////")]
    figure.legend(handles, names, loc="outside upper center", ncols=2, frameon=False)
    return figure


def _span(contract: Contract, constraint: Constraint) -> tuple[float, float, float, bool] | None:
    """Lowest and highest value of what is limited, the limit, and whether the allowed part is below it."""
    terms, of = all_terms(contract), constraint.of
    if isinstance(of, Chance):
        return 0.0, 1.0, constraint.limit, constraint.relation == "<="
    if isinstance(of, (Expect, CVaR)):
        term, limit, below = terms[name_of(of.term)], constraint.limit, constraint.relation == "<="
        if term.level == "token" and term.reduce == "sum":
            return None
    elif isinstance(of, (Event, Always, Eventually)) and isinstance(getattr(of, "of", of), Event):
        event: Any = getattr(of, "of", of)
        term, limit, below = terms[name_of(event.term)], event.value, event.relation[0] == "<"
    else:
        return None
    low, high = term.range
    return (low, high, limit, below) if math.isfinite(low) and math.isfinite(high) and low < high else None


def _patch(colour: str, **more: Any) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, **more)


def _short(text: str, most: int = 28) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
