"""What a compiled TPU program costs by its compiler's own account, read from the text that XLA dumps after code generation.

Every fusion there carries the cycles that the compiler expects of it; a loop's body runs as often as its condition says. Summed, they are
the compiler's estimate of the step. `cost_analysis()` cannot serve: it counts a loop's body once. What crosses the links is summed apart.
"""

import collections
import dataclasses
import math
import re

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|called_computations|branch_computations)=\{?(%[\w.\-]+(?:, ?%[\w.\-]+)*)\}?")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_ARRAY = re.compile(r"\b(pred|[usf]\d+|bf16|f8\w*|s4|u4)\[([\d,]*)\]")
_BITS = {"pred": 8, "bf16": 16}
_MESH_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_LIST_GROUPS = re.compile(r"replica_groups=\{\{([\d,]*)\}")
_IOTA_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_UNKNOWN = 2**60
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")


@dataclasses.dataclass(frozen=True)
class Instruction:
  name: str
  type: str
  opcode: str
  rest: str  # operands, attributes, backend_config


@dataclasses.dataclass
class Cost:
  """Of one step on one chip. sent_bytes: {(kind, size of its group): bytes}; by_name: cycles by the operation that they come from.

  untimed_bytes: written by operations whose cycles the compiler does not know (gathers by index, it says the largest int64).
  kernels: calls of hand-written kernels, of whose time it says nothing at all.
  """

  cycles: float = 0.0
  kernels: int = 0
  untimed_bytes: float = 0.0
  sent_bytes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  by_name: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  def add(self, other, times):
    self.cycles += times * other.cycles
    self.untimed_bytes += times * other.untimed_bytes
    self.kernels += times * other.kernels
    for mine, others in ((self.sent_bytes, other.sent_bytes), (self.by_name, other.by_name)):
      for key, value in others.items():
        mine[key] += times * value


def parse(lines):
  """The dump's lines -> ({computation: [Instruction]}, the entry's name)."""
  computations, entry, current = {}, None, None
  for line in lines:
    if line.startswith((" ", "\t")):
      found = _INSTRUCTION.match(line) if current is not None else None
      if found:
        current.append(Instruction(*found.groups()))
    elif header := _COMPUTATION.match(line):
      current = computations[header[2]] = []
      if header[1]:
        entry = header[2]
    # A closing brace ends nothing: the attributes of a kernel are spread over lines of their own, with braces at their start.
  if entry is None:
    raise ValueError("a dump without an ENTRY computation")
  return computations, entry


def cost(computations, entry) -> Cost:
  """ValueError where a loop's number of rounds cannot be read: an estimate that leaves it out would be a guess."""
  known = {}

  def of(name):
    if name not in known:
      known[name] = total = Cost()
      for instruction in computations[name]:
        _add(total, instruction, computations, of)
    return known[name]

  return of(entry)


def _add(total, instruction, computations, of):
  opcode = instruction.opcode
  called = [name.strip(" %") for match in _CALLED.finditer(instruction.rest) for name in match[1].split(",")]
  if opcode == "while":
    body, condition = (re.search(rf"\b{what}=%?([\w.\-]+)", instruction.rest)[1] for what in ("body", "condition"))
    total.add(of(body), _trips(instruction, computations[condition]))
    return
  if opcode == "conditional":
    total.add(max((of(name) for name in called), key=lambda branch: branch.cycles), 1)
    return
  kind = opcode.removesuffix("-start")
  if kind in COLLECTIVES:
    size = group_size(instruction.rest)
    total.sent_bytes[kind, size] += sent(kind, size, instruction.type if kind == opcode else _result(instruction.type))
    return
  if opcode == "custom-call" and 'custom_call_target="tpu_custom_call"' in instruction.rest:
    total.kernels += 1
  cycles = _CYCLES.search(instruction.rest)
  if cycles and int(cycles[1]) > _UNKNOWN:
    total.untimed_bytes += nbytes(instruction.type)
  elif cycles:
    total.cycles += int(cycles[1])
    total.by_name[_name(instruction)] += int(cycles[1])
  if opcode in ("call", "async-start", "fusion"):
    for name in called:
      inside = of(name)
      # A fusion's own figure covers what it computes; only what it sends is still to be added.
      total.add(Cost(sent_bytes=inside.sent_bytes) if cycles else inside, 1)


def _name(instruction):
  """The operation's place in the model, without the numbers of loops."""
  found = re.search(r'op_name="([^"]*)"', instruction.rest)
  return found[1] if found else instruction.opcode


def _trips(instruction, condition):
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest)
  if known:
    return int(known[1])
  constants = {i.name: int(i.rest.split(")")[0]) for i in condition if i.opcode == "constant" and re.match(r"-?\d+\)", i.rest)}
  root = condition[-1]
  bounds = [constants[name] for name in re.findall(r"%([\w.\-]+)", root.rest) if name in constants]
  if len(bounds) != 1 and len(constants) == 1:  # the comparison is in a fusion, the bound beside it
    bounds = list(constants.values())
  if len(bounds) != 1:
    raise ValueError(f"the loop {instruction.name}: cannot tell how often it runs")
  return bounds[0]


def group_size(rest) -> int:
  """Chips that a collective joins; 2 for a permutation, which has pairs."""
  if mesh := _MESH_GROUPS.search(rest):
    sizes = dict(pair.replace("'", "").split("=") for pair in mesh[1].split(","))
    return math.prod(int(sizes[axis.strip(" '")]) for axis in mesh[2].split(",") if axis.strip())
  if listed := _LIST_GROUPS.search(rest):
    return len(listed[1].split(","))
  if iota := _IOTA_GROUPS.search(rest):
    return int(iota[2])
  return 2


def sent(kind, size, result) -> float:
  """Bytes that each chip sends, where a ring carries the collective; result: its type."""
  held = nbytes(result)
  share = (size - 1) / size
  if kind == "all-reduce":
    return 2 * share * held
  if kind == "reduce-scatter":
    return share * held * size
  return share * held if kind in ("all-gather", "all-to-all", "ragged-all-to-all") else held


def nbytes(text) -> float:
  """Of all arrays of a type."""
  total = 0
  for dtype, shape in _ARRAY.findall(text):
    bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
    total += bits / 8 * math.prod(int(n) for n in shape.split(",") if n)
  return total


def _result(text):
  """Of the type (operands, results, ...) of a -start: the second half, without the counters."""
  arrays = [m for m in re.finditer(r"(?:pred|[usf]\d+|bf16)\[[\d,]*\]", text) if not re.fullmatch(r"[us]32\[\]", m[0])]
  return " ".join(m[0] for m in arrays[len(arrays) // 2 :])
