"""docs/README.md: every command of it runs, as it stands but for the words in capitals; and the commands of all pages parse.

The commands themselves are slow: pytest -m slow tests/test_docs.py
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import recordings
import robots
import tiny
from conftest import ROOT

from egoscale_jax import arguments, cli
from egoscale_jax import config as config_lib

INDEX = ROOT / "docs" / "README.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST = 5  # commands a task
# What is put behind a command so that it takes seconds; a verb that trains has the test's sizes.
TOY = ["--config.steps=2", "--config.checkpoint_every=2", "--config.validation.episodes=2", "--config.validation.times=2"]


def sections(text):
  """-> {heading: (commands, blocks of Python)} of the second-level headings that have a block of commands."""
  found = {}
  for part in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
    heading, body = part.split("\n", 1)
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
    commands = [line.split("  #")[0].strip() for kind, block in blocks if not kind for line in block.splitlines() if line.strip()]
    if commands:
      found[heading] = commands, [block for kind, block in blocks if kind == "python"]
  return found


TASKS = sections(INDEX.read_text())


def egodex(folder):
  for i in range(6):
    recordings.write(folder / "EGODEX", f"pour/{i}", frames=70 + i, seed=i, llm_description=f"Pour tea into cup {i}.")


def lerobot(folder):
  robots.write_v3(folder, "LEROBOT", config=None)
  (folder / "COLUMNS.json").write_text(json.dumps(robots.CONFIG))


def my_hand(folder):
  egodex(folder)
  for side in ("left", "right"):
    shutil.copyfile(ROOT / "egoscale_jax" / "hands" / "models" / f"dex3_{side}.xml", folder / f"{side.upper()}.xml")
  np.save(folder / "KEYPOINTS.npy", recordings.hand_points(40)[:, 1])


def landmarks(folder):
  import test_landmarks

  for i in range(4):
    test_landmarks.write(folder / "LANDMARKS", f"pour_{i}", frames=70, scene=f"kitchen_{i}")


def pod(folder):
  """`gcloud` is one that writes down how it was called."""
  (folder / "bin").mkdir()
  (folder / "bin" / "gcloud").write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >>{folder}/gcloud.log\necho ACTIVE\n')
  (folder / "bin" / "gcloud").chmod(0o755)


def checkpoint(folder):
  """A checkpoint of GR00T N1.7, tiny, and a config of its sizes."""
  from egoscale_jax.data import tokenizer
  from egoscale_jax.models import reference, vla, weights

  config = config_lib.parse([f"--config={ROOT}/configs/posttrain.py:debug"]).model
  (folder / "CHECKPOINT").mkdir()
  shapes = vla.param_shapes(vla.VLA(config))
  weights.export(tiny.params(shapes), weights.plan(config, shapes), {}, folder / "CHECKPOINT")
  (folder / "CHECKPOINT" / "config.json").write_text(json.dumps(reference.to_theirs(config)))
  tokenizer.build(["pour tea"], config.language.vocab).save(str(folder / "CHECKPOINT" / "tokenizer.json"))


PLANNED = "configs/pretrain.py --topology=v5p:4x8x8 --config.mesh.data=4 --config.mesh.fsdp=64"  # takes minutes and 6 GB
PLANNED_TOY = "configs/pretrain.py:debug --topology=v5p:2x2x1 --config.mesh.data=1 --config.mesh.fsdp=4"
# Of each task: what makes the inputs, what its words in capitals and what is too dear stand for, and what is there in the end.
RUNS = {
  "My EgoDex folder": (egodex, {}, ("doctor.html", "hands.mp4", "runs/egodex/validation.png")),
  "My EgoDex folder, fine-tuned": (egodex, {}, ("doctor.html", "runs/pretrained/checkpoints", "runs/tuned/validation.png")),
  "My LeRobot data": (lerobot, {"ROBOT": "testbot", "CAMERA": "head"}, ("doctor.html", "robot.mp4", "runs/robot/checkpoints")),
  "My hand": (
    my_hand,
    {"HAND.urdf": "RIGHT.xml", "LEFT.urdf": "LEFT.xml", "RIGHT.urdf": "RIGHT.xml"},
    ("joints.mp4", "labels.mp4", "hand_shards/manifest.json"),
  ),
  "My robot": (lambda folder: None, {}, ()),
  "My pod": (pod, {PLANNED: PLANNED_TOY}, ("runs/pod/checkpoints",)),
  "My checkpoint": (checkpoint, {"MY_CONFIG.py": "posttrain.py:debug"}, ("out/model.safetensors", "runs/small/config.json")),
  "My own estimator's keypoints": (landmarks, {}, ("doctor.html", "mine.mp4", "predicted.mp4")),
}


def test_every_task_has_few_commands_and_is_run():
  assert set(TASKS) == set(RUNS)
  for heading, (commands, _) in TASKS.items():
    assert 1 <= len(commands) <= MOST, heading


def commands_of(page):
  """Lines of its blocks that call egoscale, `\\` joined; what stands for something else (…, ...) is left out."""
  for block in re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
    for line in block.replace("\\\n", " ").splitlines():
      line = re.split(r"\s{2,}#|\s# ", line)[0].strip()
      if line.startswith("egoscale ") and not re.search(r"\.\.\.|…", line):
        yield line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse_and_links_lead_somewhere(page):
  parser = arguments.parser({verb.__name__: verb for verb in cli.VERBS})
  for command in commands_of(page):
    words = shlex.split(command)[1:]
    told = parser.parse_args([word for word in words if not word.startswith("--config.")])
    config = getattr(told, "config", None)
    if config and (ROOT / config.split(":")[0]).is_file():
      config_lib.parse([f"--config={ROOT / config}", *(word for word in words if word.startswith("--config."))])
  for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
    file, _, anchor = target.partition("#")
    linked = page if not file else page.parent / file
    assert linked.exists(), target
    if anchor:
      headings = re.findall(r"^#+ (.*)", linked.read_text(), re.MULTILINE)
      assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target
  for path in re.findall(r"`((?:colabs|configs|launch|benchmarks|tests|egoscale_jax)/[\w./]*\w)`", page.read_text()):
    if path not in (
      "configs/my_robot.py",
      "configs/my_pretrain.py",
      "configs/my_midtrain.py",
      "configs/my_shirt.py",
      "configs/MY_CONFIG.py",
    ):
      assert (ROOT / path).exists() or list(ROOT.glob(f"{path}.*")), path


def substituted(text, words):
  for word, value in words.items():
    text = re.sub(rf"\b{re.escape(word)}\b", value, text)
  return text


def toy(command):
  """The command, with what makes it quick behind it."""
  verb = command.split()[1] if command.startswith("egoscale ") else command.split()[0]
  more = []
  if verb == "train" or verb.endswith("local_pod.sh"):
    more = TOY if "quickstart" in command or "debug" in command else []
    assert more, command
  return shlex.join([*shlex.split(command), *more]) if more else command


@pytest.fixture
def place(tmp_path):
  """A folder with the checkout's configs and scripts in it, and the environment of a person in it."""
  for name in ("configs", "launch"):
    shutil.copytree(ROOT / name, tmp_path / name)
  for name in ("egoscale_jax", "setup.py"):
    (tmp_path / name).symlink_to(ROOT / name)
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "EGOSCALE_PYTHON": sys.executable}
  environment |= {"PATH": os.pathsep.join([str(tmp_path / "bin"), os.path.dirname(sys.executable), os.environ["PATH"]])}
  environment |= {"TPU": "pod", "ZONE": "us-east5-a", "TYPE": "v5p-512"}
  return tmp_path, environment


def run(command, folder, environment):
  done = subprocess.run(["bash", "-c", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=550)
  assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
  return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("heading", [heading for heading in RUNS if heading != "My robot"])
def test_a_task_from_nothing_to_its_result(heading, place, shards):
  folder, environment = place
  make, words, results = RUNS[heading]
  commands, blocks = TASKS[heading]
  make(folder)
  words = {"SHARDS": str(shards), **words}
  if heading == "My pod":  # `copy` packs the checkout's HEAD: here a repository of its own
    run("git init -q . && git add launch && git -c user.name=t -c user.email=t@t commit -qm t", folder, environment)
  if heading == "My LeRobot data":
    (folder / "configs" / "my_robot.py").write_text(substituted(blocks[0], words))
  for command in commands:
    if command.startswith("./launch/tpu_pod.sh"):
      run(command, folder, environment)
    else:
      run(toy(substituted(command, words)), folder, environment)
  if heading == "My checkpoint":
    run(shlex.join([sys.executable, "-c", blocks[0]]), folder, environment)
  for result in results:
    path = folder / result
    assert path.exists(), result
    assert path.is_dir() or path.stat().st_size > 0, result
  if heading == "My pod":
    told = (folder / "gcloud.log").read_text()
    for word in ("queued-resources create pod", "scp", "--worker=all", "--config=configs/pretrain.py"):
      assert word in told


def served(process, log):
  """-> where the server listens, once it does."""
  end = time.monotonic() + 300
  while not (told := re.search(r"at (ws://\S+)", log.read_text())):
    assert process.poll() is None, log.read_text()
    assert time.monotonic() < end
    time.sleep(0.1)
  return told[1]


@pytest.mark.slow
def test_a_robot_asks_and_is_answered(tiny_run, place):
  folder, environment = place
  (command,), (block,) = TASKS["My robot"]
  command = substituted(command, {"WORKDIR": str(tiny_run)}) + " --port=0 --batch=1"
  with open(folder / "log", "w") as log:
    process = subprocess.Popen(shlex.split(command), cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
  try:
    url = served(process, folder / "log")
    space = {"image_YxXx3": np.zeros((48, 64, 3), np.uint8), "wrist_2x4x4": np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))}
    space |= {"joints_2xJ": np.zeros((2, 22), np.float32)}
    exec(block.replace("ws://127.0.0.1:8000", url).replace(", camera_4x4)", ")"), space)
    assert space["answer"].joints_Tx2xJ.shape[1:] == (2, 22)
  finally:
    process.terminate()
    assert process.wait(60) == 0
