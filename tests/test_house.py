"""The house itself: rooms import only rooms below them, files stay short, every config's knob is read, nothing names a machine."""

import ast
import importlib.util
import pathlib
import re
import subprocess
import sys

import pytest
from conftest import ROOT

from egoscale_jax import config as config_lib

PACKAGE = ROOT / "egoscale_jax"
# Low to high. A room may import its own files and those of rooms further left.
ROOMS = (
  "errors",
  "config",
  "zen4",
  "progress",
  "geometry",
  "hands",
  "data",
  "sim",
  "models",
  "evaluate",
  "train",
  "policy",
  "serve",
  "view",
  "arguments",
  "cli",
)
CONFIGS = ("pretrain", "midtrain", "posttrain", "quickstart", "small", "scaling", "study")


def imported_rooms(path):
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
      names = [f"{node.module}.{alias.name}" for alias in node.names]
    for name in names:
      parts = name.split(".")
      if parts[0] == "egoscale_jax" and len(parts) > 1 and parts[1] in ROOMS:
        yield parts[1]


def test_rooms_import_only_rooms_below():
  for path in PACKAGE.rglob("*.py"):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if room == "__init__":
      continue
    assert room in ROOMS, f"{path}: a new room: give it its place in the order"
    for other in imported_rooms(path):
      assert ROOMS.index(other) <= ROOMS.index(room), f"{path.relative_to(ROOT)} imports {other}, which lies above {room}"


def test_only_one_file_knows_orbax():
  users = [path.name for path in PACKAGE.rglob("*.py") if re.search(r"^\s*(import|from) orbax", path.read_text(), re.MULTILINE)]
  assert users == ["checkpoint.py"]


def test_files_and_functions_stay_short():
  for path in [*PACKAGE.rglob("*.py"), *(ROOT / "configs").glob("*.py")]:
    text = path.read_text()
    assert len(text.splitlines()) <= 300, path
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef) and node.name != "main" and path.name != "arguments.py":
        assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def test_nothing_names_a_machine():
  tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
  for name in filter(None, tracked):
    path = ROOT / name
    if path.suffix in (".py", ".sh", ".md", ".toml", ".xml", ".txt", ".ipynb", ""):
      assert not re.search(r"(?<![\w.])/(home|root|Users|work)/", path.read_text()), name


@pytest.mark.parametrize("mode", ["", ":debug"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_loads_and_is_locked(name, mode):
  config = config_lib.parse([f"--config={ROOT}/configs/{name}.py{mode}"])
  with pytest.raises(AttributeError):
    config.nonsense = 1
  if mode:
    assert config.steps <= 300
    assert config.model.language.width <= 128


def test_stages_have_the_papers_values():
  """Section 6 of the paper's facts: steps, global batch, learning rate, trained parts."""
  table = {
    "pretrain": (100_000, 8192, 5e-5, (".*",)),
    "midtrain": (50_000, 2048, 3e-5, ("vision/.*", "mixer/.*", "expert/.*")),
    "posttrain": (10_000, 512, 3e-5, ("mixer/.*", "expert/.*")),
  }
  for name, values in table.items():
    c = config_lib.parse([f"--config={ROOT}/configs/{name}.py"])
    assert (c.steps, c.batch_size, c.optim.learning_rate, c.train_parts) == values, name
    assert (c.model.horizon, c.model.action_dim, c.model.expert.layers, c.model.language.layers) == (40, 132, 32, 16)


def test_every_knob_is_read():
  code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))

  def leaves(config):
    for key, value in config.items():
      yield key
      if hasattr(value, "items"):
        yield from leaves(value)

  for key in set(leaves(config_lib.parse([f"--config={ROOT}/configs/pretrain.py"]))) - {"human"}:
    assert re.search(rf"[.\"'`(\[ ]{key}\b", code), f"config key {key!r} is read nowhere"


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_tell_their_command(name):
  spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / f"{name}.py")
  sys.path.insert(0, str(ROOT / "configs"))
  try:
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
  finally:
    sys.path.pop(0)
  assert f"--config=configs/{name}.py" in module.__doc__


def test_configs_import_only_each_other_and_ml_collections():
  for path in (ROOT / "configs").glob("*.py"):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
        assert set(names) <= {"base", "scaling", "ml_collections"}, path


def test_readme_names_every_room_and_both_commands():
  readme = pathlib.Path(ROOT / "README.md").read_text()
  first_screen = "\n".join(readme.splitlines()[:40])
  assert "./launch/quickstart.sh" in first_screen
  assert "./launch/test.sh" in first_screen
  for room in ("hands", "data", "sim", "models", "evaluate", "train", "view", "colabs"):
    assert f"{room}/" in readme
