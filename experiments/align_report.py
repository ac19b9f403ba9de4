"""report.html, one file without a script or a link out, and report.json beside it."""

import base64
import html
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Report = dict[str, Any]

INK, GREEN, RED, GREY = "#1d2433", "#1a7f5a", "#c2453d", "#8a93a5"

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #1d2433; background: #f6f7f9; margin: 0; }
main { max-width: 880px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p.lead { color: #4c566a; margin-top: 0; } small, .quiet { color: #667085; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: .8rem; }
.card { background: #fff; border: 1px solid #e3e6ec; border-radius: 10px; padding: .9rem 1rem; }
.card b { display: block; font-size: 1.45rem; } .good b { color: #1a7f5a; } .bad b { color: #c2453d; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid #e3e6ec; border-radius: 10px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; background: #fff; font-size: .93rem; }
th, td { text-align: left; padding: .42rem .65rem; border-bottom: 1px solid #e9ebf0; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code, .text { font: .85rem/1.5 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
mark { background: #ffd9d4; color: #a1231b; border-radius: 2px; }
@media print { body { background: #fff; } main { padding: 0; } }
"""


def write_report(directory: str | Path, report: Report) -> Path:
    """Write report.json and report.html.

    Args:
      directory: where; each file is written whole or not at all.
      report: what `experiments.align` measured.

    Returns:
      The path of report.html.

    Raises:
      ValueError: a number is not finite, which JSON cannot say.
    """
    directory = Path(directory)
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    _write(directory / "report.json", text + "\n")
    _write(directory / "report.html", _page(report))
    return directory / "report.html"


def summary_figure(report: Report, path: str | Path) -> None:
    """The run in one picture: the model, the constraint, the certificates."""
    with _figure(12, 3.6, columns=3) as (figure, axes):
        _plot_model(axes[0], report)
        _plot_cost(axes[1], report)
        _plot_certificates(axes[2], report)
        figure.savefig(path, dpi=110)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _page(report: Report) -> str:
    lm, certificate, tflite = report["lm"], report["certificate"], report["tflite"]
    constrained, control = certificate["constrained"], certificate["control"]
    cards = [
        _card(constrained["verdict"], f"constrained: at most {constrained['upper']:.1%} with an e", constrained),
        _card(control["verdict"], f"control: at least {control['lower']:.1%} with an e", control),
        _card(f"{lm['bits_per_byte']:.3f}", f"bits per byte; trigram {lm['trigram']:.3f}, 5-gram {lm['fivegram']:.3f}"),
        _card(
            f"{tflite['bytes'] / 1024:.0f} KiB", f"int8 TFLite; {tflite['greedy_agreement']:.2%} equal greedy tokens"
        ),
    ]
    threshold, alpha = constrained["threshold"], constrained["alpha"]
    sections = [
        f"<h1>Aligned, certified, shipped</h1><p class=lead>Contract “{_e(report['contract']['name'])}”: please a base "
        f"model, a reader and the brief; a text may contain the letter e with probability at most {threshold:g}.</p>",
        f"<div class=cards>{''.join(cards)}</div>",
        "<h2>The certificate</h2>",
        _image(9, 2.5, lambda axis: _plot_certificates(axis, report)),
        f"<p class=quiet>{constrained['n']:,} fresh completions of held-out prompts for each policy. The bars are "
        f"bounds that hold together with probability {1 - alpha:g} however often one looks (betting confidence "
        f"sequence, {alpha / 2:g} a side). They speak of this cost on this distribution of prompts,"
        " of nothing else.</p>",
        "<h2>The language model</h2>",
        _image(9, 3.2, lambda axis: _plot_model(axis, report)),
        "<h2>Training under the contract</h2>",
        _images(
            9,
            6.4,
            [
                lambda a: _plot_cost(a, report),
                lambda a: _plot_curve(a, report, "multiplier", "multiplier"),
                lambda a: _plot_curve(a, report, "reward", "welfare (Nash log-gain)"),
            ],
        ),
        "<h2>Stakeholders, before and after</h2>",
        _stakeholders(report),
        "<h2>Samples</h2>",
        _samples(report),
        "<h2>What was shipped</h2>",
        _table(
            ["", "value"],
            [
                ["int8 TFLite file", f"{tflite['bytes']:,} bytes (float: {tflite['float_bytes']:,})"],
                [
                    "difference of logits, LiteRT against JAX in int8",
                    f"mean {tflite['mean_abs_error']:.2g}, largest {tflite['max_abs_error']:.2g} "
                    f"(where an activation's code flips), of logits up to {tflite['largest_logit']:.0f}",
                ],
                ["equal greedy tokens", f"{tflite['greedy_agreement']:.3%} of {tflite['positions']:,} positions"],
                ["one call, one thread", f"{tflite['ms_per_call']:.2f} ms"],
            ],
        ),
        "<h2>The contract</h2>",
        f"<p>sha256 <code>{_e(report['contract']['digest'])}</code></p>",
        _table(
            ["check", "verdict", "detail"],
            [[c["name"], c["verdict"], c["detail"]] for c in report["contract"]["checks"]],
        ),
        "<h2>The run</h2>",
        _table(
            ["stage", "seconds"],
            [[name, f"{seconds:.1f}"] for name, seconds in report["timings"].items()]
            + [["in all", f"{report['seconds']:.1f}"]],
        ),
        f"<p><code>{_e(report['command'])}</code></p>",
        _table(["environment", ""], [[name, str(value)] for name, value in report["environment"].items()]),
        f"<p class=quiet>{lm['parameters']:,} parameters; text sha256 <code>{_e(lm['text_sha256'])}</code>, "
        f"{lm['heldout_bytes']:,} bytes held out.</p>",
    ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>rlx: {_e(report['contract']['name'])}</title><style>{STYLE}</style>"
        f"<main>{''.join(sections)}</main></html>"
    )


def _card(value: str, label: str, certificate: dict[str, Any] | None = None) -> str:
    kind = {"CERTIFIED": "good", "REFUTED": "bad"}.get(certificate["verdict"], "") if certificate else ""
    return f"<div class='card {kind}'><b>{_e(value)}</b>{_e(label)}</div>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    top = "".join(f"<th>{_e(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{_e(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class=wide><table><tr>{top}</tr>{body}</table></div>"


def _stakeholders(report: Report) -> str:
    rows = []
    for s in report["stakeholders"]:
        low, high = s["ci"]
        rows.append(
            [
                s["name"],
                f"{s['base']:.3f}",
                f"{s['constrained']:.3f}",
                f"{s['control']:.3f}",
                f"{s['difference']:+.3f} [{low:+.3f}, {high:+.3f}]",
            ]
        )
    note = (
        "<p class=quiet>Mean utility; the change is constrained − base on the same prompts, with its 95% interval.</p>"
    )
    return _table(["stakeholder", "base", "constrained", "control", "change"], rows) + note


def _samples(report: Report) -> str:
    rows = []
    for sample in report["samples"]:
        cells = "".join(f"<td class=text>{_marked(sample[kind])}</td>" for kind in ("base", "constrained", "control"))
        rows.append(f"<tr><td class='text quiet'>{_e(_visible(sample['prompt']))}</td>{cells}</tr>")
    top = "".join(f"<th>{name}</th>" for name in ("prompt", "base", "constrained", "control"))
    return f"<div class=wide><table><tr>{top}</tr>{''.join(rows)}</table></div>"


def _marked(text: str) -> str:
    return _e(_visible(text)).replace("e", "<mark>e</mark>") if text else "<span class=quiet>(nothing)</span>"


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() else "·" for c in text.rstrip("\n"))


def _e(text: str) -> str:
    # "&#x27;" and the like have no letter e, so marking may run over escaped text.
    return html.escape(text, quote=True).replace("&quot;", "&#34;")


def _plot_model(axis: Any, report: Report) -> None:
    curve, lm = report["curves"]["lm"], report["lm"]
    axis.plot(curve["step"], curve["train"], color=GREY, lw=1, label="train")
    axis.plot(curve["heldout_step"], curve["heldout"], color=INK, lw=2, marker="o", ms=3, label="held-out")
    for name, value, style in (("trigram", lm["trigram"], "--"), ("5-gram", lm["fivegram"], ":")):
        axis.axhline(value, color=RED, ls=style, lw=1.2, label=f"{name} {value:.2f}")
    axis.set(xlabel="step", title="bits per byte", ylim=(1, 5))
    axis.legend(frameon=False, ncols=2, fontsize=8)


def _plot_curve(axis: Any, report: Report, name: str, title: str) -> None:
    for run, color in (("constrained", GREEN), ("control", RED)):
        axis.plot(report["curves"][run]["step"], report["curves"][run][name], color=color, lw=1.6, label=run)
    axis.set(xlabel="step", title=title)
    axis.legend(frameon=False, fontsize=8)


def _plot_cost(axis: Any, report: Report) -> None:
    _plot_curve(axis, report, "cost", "share of texts with an e")
    axis.axhline(report["certificate"]["constrained"]["threshold"], color=INK, ls="--", lw=1)
    axis.set_ylim(-0.03, 1.03)


def _plot_certificates(axis: Any, report: Report) -> None:
    certificate = report["certificate"]
    for row, (name, color) in enumerate((("control", RED), ("constrained", GREEN))):
        bound = certificate[name]
        axis.plot([bound["lower"], bound["upper"]], [row, row], color=color, lw=7, solid_capstyle="butt")
        axis.plot(bound["rate"], row, "o", color="white", ms=4)
        left = bound["rate"] < 0.5
        axis.annotate(
            f"{bound['verdict']}  {bound['lower']:.3f} – {bound['upper']:.3f}",
            (bound["upper"] if left else bound["lower"], row),
            xytext=(8 if left else -8, 0),
            textcoords="offset points",
            va="center",
            ha="left" if left else "right",
            fontsize=9,
            color=color,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )
    axis.axvline(certificate["constrained"]["threshold"], color=INK, ls="--", lw=1)
    axis.set(yticks=[0, 1], yticklabels=["control", "constrained"], xlim=(-0.02, 1.02), ylim=(-0.6, 1.6))
    axis.set(title="P(text contains e): bounds, allowed")


class _figure:
    """A figure with the report's looks; closed at the end."""

    def __init__(self, width: float, height: float, *, rows: int = 1, columns: int = 1) -> None:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        with mpl.rc_context(
            {
                "font.size": 9,
                "axes.titlesize": 10,
                "axes.titlelocation": "left",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.grid": True,
                "grid.color": "#e9ebf0",
                "axes.axisbelow": True,
            }
        ):
            self.figure = Figure(figsize=(width, height), layout="constrained")
            self.axes = self.figure.subplots(rows, columns, squeeze=False).ravel()

    def __enter__(self) -> tuple[Any, Any]:
        return self.figure, self.axes

    def __exit__(self, *_: object) -> None:
        self.figure.clear()


def _image(width: float, height: float, draw: Callable[[Any], None]) -> str:
    return _images(width, height, [draw])


def _images(width: float, height: float, draws: list[Callable[[Any], None]]) -> str:
    with _figure(width, height, rows=len(draws)) as (figure, axes):
        for axis, draw in zip(axes, draws, strict=True):
            draw(axis)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='' src='data:image/svg+xml;base64,{data}'>"
