"""Where training FLOPs go best: more hours or a larger model. From the laws at equal passes, where a size's FLOPs grow with its hours.

At C FLOPs a size is trained on D = C / (FLOPs an example x examples an hour) hours, and its law says what loss that gives.
"""

import numpy as np

ROWS = 5


def table(laws, flops_per_hour, hours) -> list[dict]:
  """laws, flops_per_hour: {size: ...}; hours: (least, most) that were measured. -> rows of {flops, best, sizes: {size: cell}}.

  A cell: {hours, loss, loss_95, measured}; measured: the hours lie within those of the study, nothing is extrapolated. best: the size of
  the least loss among the measured ones, None where there are fewer than two to choose from.
  """
  if len(laws) < 2:
    return []
  ends = [(flops_per_hour[size] * hours[0], flops_per_hour[size] * hours[1]) for size in laws]
  rows = []
  for budget in np.geomspace(min(low for low, _ in ends), max(high for _, high in ends), ROWS + 2)[1:-1]:
    cells = {size: _cell(law, budget / flops_per_hour[size], hours) for size, law in laws.items()}
    inside = [size for size, cell in cells.items() if cell["measured"]]
    best = min(inside, key=lambda size: cells[size]["loss"]) if len(inside) > 1 else None
    rows.append({"flops": float(budget), "best": best, "sizes": cells})
  return rows


def _cell(law, hours, measured):
  low, high = (float(v) for v in law.band(np.float64(hours)))
  interval = [low, high] if np.isfinite(low) and np.isfinite(high) else None
  inside = measured[0] * (1 - 1e-9) <= hours <= measured[1] * (1 + 1e-9)
  return {"hours": float(hours), "loss": float(law.at(hours)), "loss_95": interval, "measured": bool(inside)}
