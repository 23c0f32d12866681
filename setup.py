"""egoscale_jax: from egocentric human video to a dexterous robot policy, in JAX."""

import pathlib

import setuptools

setuptools.setup(
  name="egoscale_jax",
  version="0.1.0",
  description="EgoScale (arXiv:2602.16710) in JAX: pre-train a flow-matching VLA on egocentric human video.",
  long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=setuptools.find_packages(include=["egoscale_jax", "egoscale_jax.*"]),
  package_data={"egoscale_jax.hands": ["models/*.xml"]},
  # Floors are the versions that the tests ran with; jax 0.10.2 is the newest for Python 3.11.
  install_requires=[
    "absl-py>=2.3",
    "array-record>=0.8.3",
    "av>=18",
    "datasketches>=5.2",
    "einops>=0.8",
    "etils[epath]>=1.13",
    "flax>=0.12.6",
    "google-crc32c>=1.7",
    "grain>=0.2.18",
    "h5py>=3.14",
    "jax>=0.10.2",
    "matplotlib>=3.10",
    "ml-collections>=1.1",
    "mujoco>=3.5",
    "numpy>=2.2",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "pillow>=11",
    "pyarrow>=21",
    "safetensors>=0.8",
    "scipy>=1.15",
    "simplejpeg>=1.9",
    "tensorboardx>=2.6.5",
    "tensorflow-datasets>=4.9.10",
    "tokenizers>=0.22",
    "tqdm>=4.67",
    "zarr>=3.1",
  ],
  extras_require={
    "tpu": ["jax[tpu]>=0.10.2"],
    "cuda": ["jax[cuda13]>=0.10.2"],
    "serve": ["msgpack>=1.1", "prometheus-client>=0.22", "pyzmq>=27", "websockets>=15"],
    "web": ["rerun-sdk>=0.41"],  # its views of states are young: older ones lack them
    "video": ["mediapipe>=1.0"],
    "beam": ["apache-beam>=2.77"],  # holds protobuf at 6.33 and pyarrow at 25
    "dev": ["apache-beam>=2.77", "pytest>=9", "pytest-xdist>=3.8", "ruff>=0.14"],
  },
  entry_points={"console_scripts": ["egoscale=egoscale_jax.cli:main"]},
)
