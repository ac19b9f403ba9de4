"""The shape of a contract file: every field, its type and its bounds, as msgspec checks them."""

from typing import Annotated, Any, Literal

import msgspec

Name = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,127}$")]
Text = Annotated[str, msgspec.Meta(max_length=256)]
End = float | Literal["inf", "-inf"]
Ends = Annotated[list[End], msgspec.Meta(min_length=2, max_length=2)]
Tokens = Annotated[int, msgspec.Meta(ge=0)]
Relation = Literal["<", "<=", ">", ">="]
Limit = Literal["<=", ">="]


class Strict(msgspec.Struct, forbid_unknown_fields=True):
    pass


class Signal(Strict):
    dims: (
        Annotated[str, msgspec.Meta(min_length=1, max_length=8)]
        | Annotated[list[str | int], msgspec.Meta(min_length=1, max_length=8)]
    ) = "BT"
    dtype: Literal["bool", "int8", "int16", "int32", "uint8", "uint16", "uint32", "float16", "bfloat16", "float32"] = (
        "float32"
    )
    range: Ends | None = None
    unit: Text = ""


class Term(Strict):
    name: Name
    fn: Text
    unit: Text = ""
    range: Ends | None = None
    level: Literal["sequence", "token"] = "sequence"
    reduce: Literal["mean", "sum"] = "mean"
    options: dict[str, Any] = {}


class Stakeholder(Strict):
    name: Name
    utility: Annotated[dict[str, float], msgspec.Meta(min_length=1, max_length=1024)]
    weight: float = 1.0
    unit: Text = ""


class Formula(Strict, tag_field="kind"):
    pass


class Event(Formula, tag="event"):
    term: Name
    relation: Relation
    value: float


class And(Formula, tag="and"):
    parts: "Annotated[list[AnyFormula], msgspec.Meta(min_length=1, max_length=64)]"


class Or(Formula, tag="or"):
    parts: "Annotated[list[AnyFormula], msgspec.Meta(min_length=1, max_length=64)]"


class Not(Formula, tag="not"):
    of: "AnyFormula"


class Always(Formula, tag="always"):
    of: "AnyFormula"
    first: Tokens = 0
    last: Tokens | None = None


class Eventually(Formula, tag="eventually"):
    of: "AnyFormula"
    first: Tokens = 0
    last: Tokens | None = None


class Until(Formula, tag="until"):
    left: "AnyFormula"
    right: "AnyFormula"
    first: Tokens = 0
    last: Tokens | None = None


AnyFormula = Event | And | Or | Not | Always | Eventually | Until


class Constraint(Strict, tag_field="kind"):
    relation: Limit = "<="
    limit: float = 0.0
    multiplier: float = 0.0


class Expect(Constraint, tag="expect", kw_only=True):
    term: Name


class Chance(Constraint, tag="chance", kw_only=True):
    event: AnyFormula


class CVaR(Constraint, tag="cvar", kw_only=True):
    term: Name
    level: float = 0.9
    at: float | None = None


class Holds(Constraint, tag="formula", kw_only=True):
    holds: AnyFormula


class Example(Strict):
    name: Name
    batch: dict[str, Any]
    terms: dict[str, Ends] = {}
    total: Ends | None = None
    ranking: list[Tokens] = []
    satisfied: list[bool] | None = None


class Contract(Strict):
    format: Literal["rlx.contract/2"]
    name: Name
    stakeholders: Annotated[list[Stakeholder], msgspec.Meta(min_length=1, max_length=1024)]
    terms: Annotated[list[Term], msgspec.Meta(max_length=1024)] = []
    version: Annotated[str, msgspec.Meta(min_length=1, max_length=128)] = "1"
    signals: Annotated[dict[Name, Signal], msgspec.Meta(max_length=1024)] = {}
    aggregate: dict[str, Any] | None = None
    constraints: Annotated[list[Expect | Chance | CVaR | Holds], msgspec.Meta(max_length=1024)] = []
    tests: Annotated[list[Example], msgspec.Meta(max_length=1024)] = []
    provenance: dict[str, Any] = {}
