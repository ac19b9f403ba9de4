"""What is rewarded, what is forbidden, and the proof of it.

A `Contract` names terms (pure functions of a batch), stakeholders whose utilities are linear in them, a rule that
aggregates utilities (`aggregate`), and constraints: `Expect(term) <= x`, `Chance(event) <= p`, `CVaR(term) <= x`, or a
formula over tokens such as `Always(term < c)`. From it:

* `compile` makes one pure function `reward(params, batch) -> RewardOut`; every number is an array in `params`.
* `verify` proves or refutes what it claims before it is used; `monitor` watches it inside jit; `certify` tells from
  fresh samples whether a constraint holds, valid however often you look.
* `digest` is the hash of what it says, code included; `diff`, `sign` and `AuditLog` build on it.
* `loads` and `dumps` are for files, `card` for people, `python -m rlx.contracts` for the terminal.
* `as_trl`, `as_tunix`, `as_verl`, `as_openrlhf` and `as_verifiers` put it into the trainers that people use.
"""

from . import _builtin as _builtin
from . import aggregate as aggregate
from ._audit import AuditLog as AuditLog
from ._audit import LogReport as LogReport
from ._audit import verify_consistency as verify_consistency
from ._audit import verify_inclusion as verify_inclusion
from ._audit import verify_log as verify_log
from ._card import card as card
from ._certify import Certificate as Certificate
from ._certify import certify as certify
from ._compile import Reward as Reward
from ._compile import RewardOut as RewardOut
from ._compile import compile as compile
from ._consistency import Check as Check
from ._constraints import Always as Always
from ._constraints import And as And
from ._constraints import Chance as Chance
from ._constraints import Constraint as Constraint
from ._constraints import CVaR as CVaR
from ._constraints import Event as Event
from ._constraints import Eventually as Eventually
from ._constraints import Expect as Expect
from ._constraints import Formula as Formula
from ._constraints import Not as Not
from ._constraints import Or as Or
from ._constraints import Until as Until
from ._contract import Contract as Contract
from ._contract import Example as Example
from ._contract import Stakeholder as Stakeholder
from ._diff import Change as Change
from ._diff import Diff as Diff
from ._diff import diff as diff
from ._digest import digest as digest
from ._encode import encode_bytes as encode_bytes
from ._encode import encode_ids as encode_ids
from ._files import dumps as dumps
from ._files import load as load
from ._files import loads as loads
from ._monitor import Monitor as Monitor
from ._monitor import MonitorReport as MonitorReport
from ._monitor import MonitorState as MonitorState
from ._monitor import monitor as monitor
from ._sign import Signature as Signature
from ._sign import load_private_key as load_private_key
from ._sign import load_public_key as load_public_key
from ._sign import new_key as new_key
from ._sign import sign as sign
from ._sign import verify_signature as verify_signature
from ._terms import Signal as Signal
from ._terms import Term as Term
from ._terms import register as register
from ._terms import registered as registered
from ._trainers import as_openrlhf as as_openrlhf
from ._trainers import as_trl as as_trl
from ._trainers import as_verifiers as as_verifiers
from ._trainers import as_verl as as_verl
from ._tunix import as_tunix as as_tunix
from ._tunix import register_tunix as register_tunix
from ._verify import verify as verify
from .aggregate import CES as CES
from .aggregate import OWA as OWA
from .aggregate import Borda as Borda
from .aggregate import Copeland as Copeland
from .aggregate import Leximin as Leximin
from .aggregate import MaximalLottery as MaximalLottery
from .aggregate import MaxMin as MaxMin
from .aggregate import Nash as Nash
from .aggregate import WeightedSum as WeightedSum
