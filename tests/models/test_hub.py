"""Where a checkpoint lies: what is fetched, from where, and what is said where it cannot be."""

import sys

import pytest
from etils import epath

from egoscale_jax.errors import UserError
from egoscale_jax.models import hub


@pytest.fixture
def folder(tmp_path):
  for name in ("config.json", "model-00001-of-00001.safetensors", "README.md"):
    (tmp_path / name).write_text(name)
  (tmp_path / "experiment_cfg").mkdir()
  return tmp_path


def test_a_folder_is_itself(folder):
  with hub.local(str(folder)) as found:
    assert found == folder


def test_a_bucket_is_copied_without_what_nobody_reads_and_the_copy_goes_away(folder, monkeypatch):
  asked, path = [], epath.Path(folder)
  monkeypatch.setattr(hub.epath, "Path", lambda address: asked.append(address) or path)
  with hub.local("gs://bucket/model") as found:
    assert {path.name: path.read_text() for path in found.iterdir()} == {
      name: name for name in ("config.json", "model-00001-of-00001.safetensors")
    }
  assert asked == ["gs://bucket/model"]
  assert not found.exists()
  assert folder.exists()


def test_a_bucket_that_breaks_off_is_one_line(monkeypatch):
  class Broken:
    def iterdir(self):
      raise RuntimeError("401, Anonymous caller\nTraceback of the storage")

  monkeypatch.setattr(hub.epath, "Path", lambda address: Broken())
  with pytest.raises(UserError, match=r"^gs://bucket/model: cannot be fetched \(401, Anonymous caller\); copy it to a folder [^\n]*$"):
    with hub.local("gs://bucket/model"):
      pass


def test_the_hub_is_asked_for_weights_and_settings_alone(folder, monkeypatch):
  huggingface_hub = pytest.importorskip("huggingface_hub", reason="reads hf:// addresses")
  asked = []
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **kwargs: asked.append((name, kwargs)) or str(folder))
  with hub.local("hf://nvidia/GR00T-N1.7-3B") as found:
    assert found == folder
  assert asked == [("nvidia/GR00T-N1.7-3B", {"allow_patterns": ["*.safetensors", "*.json"]})]


def test_offline_says_what_to_do(monkeypatch, tmp_path):
  """Nothing is mocked but that the network is off."""
  constants = pytest.importorskip("huggingface_hub.constants", reason="reads hf:// addresses")
  monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
  advice = r"where there is a network `hf download nvidia/nothing --local-dir=DIR`, then give DIR$"
  with pytest.raises(UserError, match=r"^hf://nvidia/nothing: cannot be fetched \([^\n]*\); " + advice):
    with hub.local("hf://nvidia/nothing"):
      pass
  monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # not installed
  with pytest.raises(UserError, match=r"pip install huggingface_hub; or " + advice):
    with hub.local("hf://nvidia/nothing"):
      pass
