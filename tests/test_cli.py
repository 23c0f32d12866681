"""The command line as a person meets it: help with an example, the road end to end, one line for every mistake."""

import json
import re
import shutil

import pytest
import recordings
from conftest import ROOT

from egoscale_jax import arguments, cli
from egoscale_jax.view import evaluation

VERBS = (
  "simulate",
  "record",
  "doctor",
  "prepare",
  "export",
  "retarget",
  "train",
  "convert",
  "evaluate",
  "scaling",
  "study",
  "rollout",
  "serve",
  "view",
  "report",
)
DEBUG = f"--config={ROOT}/configs/pretrain.py:debug"


def run(capsys, *argv):
  """-> exit code, standard output, standard error."""
  try:
    code = cli.main(list(map(str, argv)))
  except SystemExit as stop:  # argparse ends so, with its own one line
    code = stop.code
  out, err = capsys.readouterr()
  return code, out, err


def fails(capsys, *argv):
  """The one line of a user's mistake."""
  code, _, err = run(capsys, *argv)
  assert code not in (0, None)
  lines = [line for line in err.strip().splitlines() if line.startswith("egoscale")]
  assert len(lines) == 1, err
  assert "Traceback" not in err
  return lines[0]


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_one_example_that_parses(capsys, verb):
  code, out, _ = run(capsys, verb, "--help")
  assert code == 0
  example = re.search(rf"example:\n  egoscale ({verb} .*)", out).group(1)
  arguments.parser({f.__name__: f for f in cli.VERBS}).parse_args([word for word in example.split() if not word.startswith("--config.")])


@pytest.mark.parametrize("verb", ["doctor", "prepare", "retarget"])
def test_help_says_that_a_hand_may_be_a_file(capsys, verb):
  assert "--hand NAME|FILE" in run(capsys, verb, "--help")[1]


def test_help_lists_every_verb(capsys):
  _, out, _ = run(capsys, "--help")
  assert all(verb in out for verb in VERBS)


def test_evaluate_view_and_report_on_a_run(capsys, tiny_run, shards, tmp_path):
  workdir = tmp_path / "run"
  shutil.copytree(tiny_run, workdir)
  fields = [f"--config.validation.{name}" for name in ("draws=3", "times=2", "batch_size=4")]
  code, out, err = run(capsys, "evaluate", DEBUG, f"--workdir={workdir}", *fields)
  assert code == 0, err
  figures = json.loads((workdir / "validation.json").read_text())
  assert figures["points"] == 2
  assert figures["draws"] == 3
  assert out.startswith(f"step {figures['step']}: 2 queries of {figures['episodes']} held-out episodes, 3 samples each\n")
  assert f" times the error of holding still ({figures['hold_still_mse']:.3g}): " in out
  assert (workdir / "validation.png").read_bytes().startswith(b"\x89PNG")
  code, _, err = run(capsys, "evaluate", f"--workdir={workdir}")  # as the run itself validates
  assert code == 0, err
  own = json.loads((workdir / "config.json").read_text())["validation"]
  assert json.loads((workdir / "validation.json").read_text())["draws"] == own["draws"] != figures["draws"]
  (workdir / "validation.json").write_text(json.dumps(figures))
  code, _, err = run(capsys, "report", f"--workdir={workdir}", f"--shards={shards}", f"--output={workdir}/report.html")
  assert code == 0, err
  page = (workdir / "report.html").read_text()
  assert page.count("data:image/png;base64,") >= 4
  assert 'src="http' not in page
  assert f"{figures['hold_still_mse']:.4f}" in page
  code, _, err = run(capsys, "view", f"--input={shards}", f"--output={tmp_path}/v.png", f"--workdir={workdir}")
  assert code == 0, err
  code, _, err = run(capsys, "view", f"--input={shards}", f"--output={tmp_path}/v.mp4")
  assert code == 0, err
  import av

  with av.open(str(tmp_path / "v.mp4")) as container:
    assert sum(1 for _ in container.decode(video=0)) == 50


def test_evaluate_says_how_many_times_a_baselines_error():
  figures = {"step": 9, "points": 32, "episodes": 4, "draws": 2, "action_mse": 0.27567, "action_mse_one_sample": 0.31234}
  figures |= {"hold_still_mse": 0.030974, "mean_chunk_mse": 0.5, "flow_loss": 1.23456}
  assert evaluation.lines(figures) == [
    "step 9: 32 queries of 4 held-out episodes, 2 samples each",
    "policy: action MSE 0.276 (normalised, mean of the samples; one sample 0.312)",
    "8.9 times the error of holding still (0.031): not better",
    "0.551 times the error of the mean chunk of the training data (0.5): better",
    "flow loss 1.23",
  ]


def test_simulated_recordings_travel_the_road(capsys, tmp_path):
  code, _, err = run(capsys, "simulate", f"--output={tmp_path}/rec", "--episodes=2", "--workers=1", "--image_size=48")
  assert code == 0, err
  code, out, err = run(capsys, "prepare", "--source=simulated", f"--input={tmp_path}/rec", f"--output={tmp_path}/shards")
  assert code == 0, err
  assert "kept 2 of 2 episodes" in out
  code, _, err = run(capsys, "view", f"--input={next((tmp_path / 'rec').rglob('*.hdf5'))}", f"--output={tmp_path}/r.png")
  assert code == 0, err


def test_prepare_names_what_it_left_out(capsys, tmp_path):
  recordings.write(tmp_path / "in", "pour/0")
  broken = recordings.write(tmp_path / "in", "pour/1").with_suffix(".mp4")
  broken.write_bytes(broken.read_bytes()[:2000])
  code, out, err = run(capsys, "prepare", "--source=egodex", f"--input={tmp_path}/in", f"--output={tmp_path}/out")
  assert code == 0, err
  assert re.search(r"rejected .*pour/1.mp4", out)
  assert "kept 1 of 2 episodes" in out


def test_doctor_lists_what_to_leave_out_and_prepare_obeys(capsys, tmp_path):
  def gap(file):
    file["transforms/leftHand"][10:13] = float("nan")

  recordings.write(tmp_path / "in", "pour/0", change=gap)
  recordings.write(tmp_path / "in", "pour/1", frames=10)
  recordings.write(tmp_path / "in", "pour/2").with_suffix(".mp4").unlink()
  recordings.write(tmp_path / "in", "pour/3")
  doctor = ("doctor", "--source=egodex", f"--input={tmp_path}/in")
  code, out, err = run(capsys, *doctor, f"--output={tmp_path}/doctor.json", f"--html={tmp_path}/doctor.html")
  assert code == 0, err
  assert "masked pour/0: not_finite left, 3 frames, 0.333 to 0.4 s: a keypoint is NaN or infinite" in out
  assert "rejected pour/1: too_short, 10 frames" in out
  assert re.search(r"unreadable pour/2: .*pour/2\.mp4: missing", out)
  assert "4 episodes: 1 clean, 2 to exclude" in out
  found = json.loads((tmp_path / "doctor.json").read_text())
  assert found["exclude"] == ["pour/1", "pour/2"]
  assert "<h3>pour/0</h3>" in (tmp_path / "doctor.html").read_text()
  found["exclude"].append("pour/0")  # a person's own choice
  (tmp_path / "doctor.json").write_text(json.dumps(found))
  prepare = ("prepare", "--source=egodex", f"--input={tmp_path}/in", f"--output={tmp_path}/out")
  code, out, err = run(capsys, *prepare, f"--exclude={tmp_path}/doctor.json")
  assert code == 0, err
  assert "left out 3 recordings by the list of exclusions" in out
  assert "kept 1 of 1 episodes" in out
  assert "doctor.json: exclude is 3" in fails(capsys, *prepare[:-1], f"--output={tmp_path}/b", f"--exclude={spoiled(tmp_path, found)}")
  line = fails(capsys, *prepare[:-1], f"--output={tmp_path}/b", f"--exclude={tmp_path}/none.json")
  assert line.endswith("none.json: no such file, expected the list of exclusions that `egoscale doctor --output` writes")
  assert "cannot be written" in fails(capsys, *doctor, f"--output={tmp_path}/none/doctor.json")


def spoiled(folder, found):
  (folder / "bad").mkdir()
  (folder / "bad" / "doctor.json").write_text(json.dumps(found | {"exclude": 3}))
  return folder / "bad" / "doctor.json"


def test_prepare_mistakes_are_one_line(capsys, tmp_path):
  good = recordings.write(tmp_path / "in", "pour/0").parent
  (tmp_path / "empty").mkdir()
  (tmp_path / "file").write_text("")
  prepare = ("prepare", "--source=egodex")
  assert f"{tmp_path}/empty" in fails(capsys, *prepare, f"--input={tmp_path}/empty", f"--output={tmp_path}/out")
  assert f"{tmp_path}/none" in fails(capsys, *prepare, f"--input={tmp_path}/none", f"--output={tmp_path}/out")
  line = fails(capsys, *prepare, f"--input={good}", f"--output={tmp_path}/file/out")
  assert "file/out: cannot be written" in line
  line = fails(capsys, *prepare, f"--input={good}", f"--output={tmp_path}/out", "--hand=shrapa")
  assert "shrapa" in line
  assert "sharpa_wave" in line
  assert "argument --source" in fails(capsys, "prepare", "--source=lerobot4", f"--input={good}", f"--output={tmp_path}/out")
  line = fails(capsys, "prepare", "--source=simulated", f"--input={tmp_path}/none", f"--output={tmp_path}/out")
  assert "egoscale simulate" in line
  assert not (tmp_path / "out").exists()


def test_train_mistakes_are_one_line(capsys, tmp_path, shards):
  train = ("train", f"--workdir={tmp_path}/run")
  data = f"--config.data.shards={shards}"
  assert "no such file" in fails(capsys, *train, "--config=configs/none.py")
  assert "'debgu'" in fails(capsys, *train, DEBUG.replace(":debug", ":debgu"))
  line = fails(capsys, *train, DEBUG, "--config.optim.learning_rat=1")
  assert "--config.optim.learning_rat: unknown key 'learning_rat', did you mean 'learning_rate'" in line
  assert "--config.nonsense: unknown key" in fails(capsys, *train, DEBUG, "--config.nonsense=1")
  line = fails(capsys, *train, DEBUG, "--config.batch_size=many")
  assert "--config.batch_size: found 'many', expected int" in line
  line = fails(capsys, *train, DEBUG, data, "--config.data.image_size=96")
  assert "config.data.image_size: found (96,), expected (height, width)" in line
  assert "config.validate_every: found 0" in fails(capsys, *train, DEBUG, data, "--config.validate_every=0")
  assert "config.mesh: found" in fails(capsys, *train, DEBUG, data, "--config.mesh.fsdp=0")
  assert "holds b1" in fails(capsys, *train, DEBUG, "--config.optim=3")
  assert "config.data.shards: found nothing" in fails(capsys, *train, DEBUG)
  assert f"{tmp_path}/none/manifest.json" in fails(capsys, *train, DEBUG, f"--config.data.shards={tmp_path}/none")
  (tmp_path / "file").write_text("")
  assert "file/run: cannot be written" in fails(capsys, "train", f"--workdir={tmp_path}/file/run", DEBUG, data)
  assert "multiples of patch x merge = 32" in fails(capsys, *train, DEBUG, data, "--config.data.image_size=(65, 64)")
  line = fails(capsys, "train", f"--workdir={tmp_path}/text", DEBUG, data, "--config.data.text_tokens=4")
  assert "config.data.text_tokens: found 4" in line


def test_a_work_directory_that_is_not_there_is_said_so(capsys, tmp_path, shards):
  told = f"={tmp_path}/none: no such directory, expected a work directory of `egoscale train`"
  assert f"--workdir{told}" in fails(capsys, "evaluate", DEBUG, f"--workdir={tmp_path}/none")
  assert f"--checkpoint{told}" in fails(capsys, "serve", f"--checkpoint={tmp_path}/none")
  for way in ("--web", f"--output={tmp_path}/v.png"):
    assert f"--workdir{told}" in fails(capsys, "view", f"--input={shards}", way, f"--workdir={tmp_path}/none")


def test_view_and_report_mistakes_are_one_line(capsys, tmp_path, shards, tiny_run):
  assert "expected .mp4 or .png" in fails(capsys, "view", f"--input={shards}", f"--output={tmp_path}/v.gif")
  assert "manifest.json: no such file" in fails(capsys, "view", f"--input={tmp_path}", f"--output={tmp_path}/v.png")
  line = fails(capsys, "view", f"--input={tmp_path}/none", f"--output={tmp_path}/v.png")
  assert f"--input={tmp_path}/none: no such directory" in line
  assert "found a work directory, which is shown with --web" in fails(capsys, "view", f"--input={tiny_run}", f"--output={tmp_path}/v.png")
  assert "holds 6 episodes" in fails(capsys, "view", f"--input={shards}", f"--output={tmp_path}/v.png", "--episode=6")
  assert "config.json is missing" in fails(capsys, "view", f"--input={shards}", f"--output={tmp_path}/v.png", f"--workdir={tmp_path}")
  line = fails(capsys, "report", f"--workdir={tiny_run}", f"--shards={shards}", f"--output={tmp_path}/r.html")
  assert "validation.json: missing, run `egoscale evaluate` first" in line
  assert "takes no config" in fails(capsys, "view", f"--input={shards}", f"--output={tmp_path}/v.png", "--config.steps=1")
  assert "--config.steps=1: found without --config=FILE" in fails(capsys, "evaluate", f"--workdir={tiny_run}", "--config.steps=1")
