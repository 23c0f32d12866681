"""Laws of a validation loss L against hours of data D, fitted to a study's runs.

```
log    L = a - b ln D          paper section 3.3; ordinary least squares
power  L = c + a D ** -p       c, a at least 0: least squares, p by search, c and a solved for every p
```
Intervals are 95 % and from a bootstrap with a fixed seed: the runs' residuals, each by 1 / sqrt(1 - leverage) larger so that they have
the runs' own spread, are dealt anew to the runs, and the law is fitted again. The log law's are studentised (each draw measured by its own
error), which is right for few runs too; the power law's are percentiles. Both take the runs' deviations for independent: what all the runs
of a subset share, its luck in episodes, is not in an interval.
"""

import dataclasses

import numpy as np

from egoscale_jax.errors import UserError

DRAWS = 2000  # of the bootstrap
LEVEL = (2.5, 97.5)  # percentiles
LEAST = {"log": 3, "power": 4}  # different hours: one more than what is fitted, so that R² and the extrapolation say something
LEAST_RUNS = 5  # with fewer there is no interval
EXPONENTS = np.geomspace(1e-2, 8.0, 121)  # what is searched; below it lies the log law, above it a step at the first hours


def check(kind, hours_N, loss_N, names=None):
  """UserError in one line where they cannot be fitted; names: of the runs, for it."""
  for i, (hours, loss) in enumerate(zip(hours_N, loss_N)):
    where = names[i] if names else f"run {i}"
    if not (np.isfinite(hours) and hours > 0):
      raise UserError(f"{where}: found {hours} hours of data, expected a number above 0")
    if not (np.isfinite(loss) and loss > 0):
      raise UserError(f"{where}: found a loss of {loss}, expected a number above 0")
  different = len(set(hours_N))
  if different < LEAST[kind]:
    raise UserError(f"{kind} law: found {different} different numbers of hours in {len(hours_N)} runs, expected at least {LEAST[kind]}")


@dataclasses.dataclass(frozen=True)
class Log:
  """L = a - b ln D; the bootstrap's draws beside it, R of them (none: too few runs)."""

  a: float
  b: float
  error: float  # standard deviation of a run around the law
  mean: float  # of ln D over the runs
  spread: float  # sum of squares of ln D around it
  runs: int
  draws: np.ndarray  # [R, 3] of a, b, error

  def at(self, hours):
    return self.a - self.b * np.log(hours)

  def band(self, hours):
    """-> low and high of the law itself at the hours."""
    x = np.log(np.asarray(hours, np.float64))[..., None]
    wide = np.sqrt(1 / self.runs + (x - self.mean) ** 2 / self.spread)
    found = self.draws[:, 0] - self.draws[:, 1] * x
    return _studentised(self.at(hours), self.error * wide[..., 0], found, self.draws[:, 2] * wide)

  def told(self):
    """-> {name: value}, {name: (low, high)}."""
    slope = 1 / np.sqrt(self.spread)
    base = np.sqrt(1 / self.runs + self.mean**2 / self.spread)
    intervals = {
      "a": _studentised(self.a, self.error * base, self.draws[:, 0], self.draws[:, 2] * base),
      "b": _studentised(self.b, self.error * slope, self.draws[:, 1], self.draws[:, 2] * slope),
    }
    return {"a": self.a, "b": self.b}, intervals


@dataclasses.dataclass(frozen=True)
class Power:
  """L = c + a D ** -p; draws [R, 3] of c, a, p."""

  c: float
  a: float
  p: float
  draws: np.ndarray

  def at(self, hours):
    return self.c + self.a * np.asarray(hours, np.float64) ** -self.p

  def band(self, hours):
    c, a, p = self.draws.T
    return _percentiles(c + a * np.asarray(hours, np.float64)[..., None] ** -p)

  def told(self):
    intervals = {name: _percentiles(column) for name, column in zip(("c", "a", "p"), self.draws.T)}
    return {"c": self.c, "a": self.a, "p": self.p}, intervals


def _percentiles(values):
  """Over the last axis -> low, high."""
  if values.shape[-1] == 0:
    return np.full(values.shape[:-1], np.nan), np.full(values.shape[:-1], np.nan)
  low, high = np.percentile(values, LEVEL, axis=-1)
  return low, high


def _studentised(value, error, found, errors):
  """value and its error; the draws' [..., R] -> low, high."""
  if found.shape[-1] == 0 or np.all(np.asarray(error) == 0):  # no draws; or the law goes through every run
    same = np.asarray(value, np.float64)
    return (same * np.nan, same * np.nan) if found.shape[-1] == 0 else (same, same)
  with np.errstate(divide="ignore", invalid="ignore"):
    t = (found - np.asarray(value)[..., None]) / errors
  t = np.where(np.isfinite(t), t, 0.0)  # a draw that gave one residual to all the runs: it has no error to measure by
  low, high = _percentiles(t)
  return value - high * error, value - low * error


def fit_log(hours_N, loss_N, names=None, seed=0) -> Log:
  check("log", hours_N, loss_N, names)
  x_N, y_N = np.log(np.asarray(hours_N, np.float64)), np.asarray(loss_N, np.float64)
  mean, n = x_N.mean(), len(x_N)
  spread = float(np.sum((x_N - mean) ** 2))

  def solve(y_RxN):
    b = -(y_RxN @ (x_N - mean)) / spread
    a = y_RxN.mean(axis=-1) + b * mean
    error = np.sqrt(np.sum((y_RxN - a[:, None] + b[:, None] * x_N) ** 2, axis=-1) / (n - 2))
    return np.stack([a, b, error], axis=-1)

  a, b, error = (float(v) for v in solve(y_N[None])[0])
  fitted = a - b * x_N
  error = 0.0 if error < 1e-12 * np.abs(y_N).max() else error  # rounding
  leverage = 1 / n + (x_N - mean) ** 2 / spread
  return Log(a, b, error, float(mean), spread, n, solve(_dealt(fitted, (y_N - fitted) / np.sqrt(1 - leverage), seed)))


def _dealt(fitted_N, residual_N, seed):
  """The bootstrap's losses [R, N]: no draws with fewer than LEAST_RUNS runs."""
  n = len(fitted_N)
  residual_N = residual_N - residual_N.mean()
  chosen = np.random.default_rng(seed).integers(0, n, (DRAWS if n >= LEAST_RUNS else 0, n))
  return fitted_N + residual_N[chosen]


def fit_power(hours_N, loss_N, names=None, seed=0) -> Power:
  check("power", hours_N, loss_N, names)
  hours_N, y_N = np.asarray(hours_N, np.float64), np.asarray(loss_N, np.float64)
  middle = float(np.exp(np.log(hours_N).mean()))  # hours in its units: powers stay near 1
  relative = hours_N / middle
  c, a, p = (float(v) for v in _solve_power(relative, y_N[None])[0])
  u_N = relative**-p
  fitted = c + a * u_N
  # The leverage of what is linear and of p, by the law's derivatives.
  jacobian = np.stack([np.ones_like(u_N), u_N, -a * u_N * np.log(relative)], axis=1)
  values, singular, _ = np.linalg.svd(jacobian, full_matrices=False)
  leverage = np.sum(values[:, singular > 1e-9 * singular[0]] ** 2, axis=1)
  draws = _solve_power(relative, _dealt(fitted, (y_N - fitted) / np.sqrt(np.maximum(1 - leverage, 0.1)), seed))
  draws[:, 1] *= middle ** draws[:, 2]
  return Power(c, a * middle**p, p, draws)


def _solve_power(x_N, y_RxN):
  """-> [R, 3] of c, a, p. Every exponent of the grid, then a golden section around the best of it."""
  if not len(y_RxN):
    return np.zeros((0, 3))
  squares = np.stack([_linear(x_N, y_RxN, np.full(len(y_RxN), p))[2] for p in EXPONENTS], axis=1)
  best = np.argmin(squares, axis=1)
  low, high = np.log(EXPONENTS[np.maximum(best - 1, 0)]), np.log(EXPONENTS[np.minimum(best + 1, len(EXPONENTS) - 1)])
  ratio = (5**0.5 - 1) / 2
  for _ in range(45):
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    smaller = _linear(x_N, y_RxN, np.exp(left))[2] < _linear(x_N, y_RxN, np.exp(right))[2]
    low, high = np.where(smaller, low, left), np.where(smaller, right, high)
  p = np.exp((low + high) / 2)
  c, a, _ = _linear(x_N, y_RxN, p)
  return np.stack([c, a, p], axis=1)


def _linear(x_N, y_RxN, p_R):
  """Best c and a, both at least 0, for given exponents -> c, a, sum of squares, each [R]."""
  u = x_N ** -p_R[:, None]
  mean_u, mean_y = u.mean(axis=1), y_RxN.mean(axis=1)
  a = np.sum((u - mean_u[:, None]) * y_RxN, axis=1) / np.sum((u - mean_u[:, None]) ** 2, axis=1)
  a = np.maximum(a, 0.0)
  c = mean_y - a * mean_u
  through_zero = np.sum(u * y_RxN, axis=1) / np.sum(u * u, axis=1)
  a, c = np.where(c < 0, through_zero, a), np.maximum(c, 0.0)
  return c, a, np.sum((y_RxN - c[:, None] - a[:, None] * u) ** 2, axis=1)


def r_squared(law, hours_N, loss_N) -> float:
  """Share of the losses' spread that the law explains; NaN where they have none."""
  loss_N = np.asarray(loss_N, np.float64)
  total = np.sum((loss_N - loss_N.mean()) ** 2)
  return float(1 - np.sum((loss_N - law.at(np.asarray(hours_N))) ** 2) / total) if total > 0 else float("nan")


def means(hours_N, loss_N):
  """-> different hours, in order, and the mean loss of each."""
  hours = sorted(set(hours_N))
  return hours, [float(np.mean([loss for h, loss in zip(hours_N, loss_N) if h == hour])) for hour in hours]


def summary(kind, fit, hours_N, loss_N, names=None) -> dict:
  """For JSON: the law with its intervals, R² over the runs and over the subsets' means, and the last subset told from the others."""
  law = fit(hours_N, loss_N, names)
  values, intervals = law.told()
  result = dict(values) | {f"{name}_95": _finite(pair) for name, pair in intervals.items()}
  result |= {"runs": len(hours_N), "r2": r_squared(law, hours_N, loss_N), "r2_of_means": r_squared(law, *means(hours_N, loss_N))}
  if kind == "power":
    result["p_at_the_edge"] = bool(law.p < EXPONENTS[0] * 1.01 or law.p > EXPONENTS[-1] / 1.01)
  return result | {"left_out": _left_out(kind, fit, hours_N, loss_N, names)}


def _left_out(kind, fit, hours_N, loss_N, names):
  """The runs of the most hours, told by a law of the others; None where these are too few."""
  last = max(hours_N)
  others = [i for i, hours in enumerate(hours_N) if hours < last]
  if len({hours_N[i] for i in others}) < LEAST[kind]:
    return None
  law = fit([hours_N[i] for i in others], [loss_N[i] for i in others], names and [names[i] for i in others])
  told, measured = float(law.at(last)), float(np.mean([loss for hours, loss in zip(hours_N, loss_N) if hours == last]))
  interval = _finite(law.band(np.float64(last)))
  return {"hours": last, "predicted": told, "predicted_95": interval, "measured": measured, "error": told / measured - 1}


def _finite(pair):
  """[low, high], or None where there is no interval: NaN is no JSON."""
  low, high = (float(v) for v in pair)
  return [low, high] if np.isfinite(low) and np.isfinite(high) else None
