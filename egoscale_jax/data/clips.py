"""Episode + Labels -> clip records and the episode record, and back: what one record of the shards holds, and how its bytes are read.

The bytes are those of TFDS (a tf.train.Example), which writes them; the reader is ours, because it is on the way of every batch.
"""

import dataclasses
import functools
import io
import itertools
from collections.abc import Iterator

import av
import numpy as np
import simplejpeg

from egoscale_jax.data import example, schema, spec
from egoscale_jax.data.sources import mp4

JPEG, H264 = "jpeg", "h264"
_WHOSE = ("", "left", "right")  # schema.Span.side
_GOP, _CRF = "8", "23"  # pictures between key frames, and quality: 5 to 8 times smaller than JPEG at 3 to 4 times its CPU


@dataclasses.dataclass(frozen=True)
class Clip:
  """One record, as it is read; the axes are those of data/spec.py."""

  episode: str
  text: str
  embodiment: str
  cameras: tuple[str, ...]
  codec: str
  start: int
  stride: int
  rate_hz: float
  data: bytes | memoryview  # the whole record
  places: list[int]  # of the pictures in it: begin, end, begin, end ...
  intrinsics_Cx3x3: np.ndarray
  T_world_camera_CxNx4x4: np.ndarray
  keypoints_Nx2xPx3: np.ndarray
  T_world_wrist_Fx2x4x4: np.ndarray
  joints_Fx2xJ: np.ndarray
  valid_Fx2: np.ndarray
  residual_m_Fx2: np.ndarray

  @property
  def num_images(self) -> int:
    return len(self.keypoints_Nx2xPx3)

  @property
  def num_frames(self) -> int:
    """Frames that are the clip's own: what is beyond them is the tail, which the next clip has too."""
    return min(self.num_images * self.stride, len(self.valid_Fx2))

  def picture(self, number: int) -> bytes | memoryview:
    """JPEG, or a camera's H.264, as it is stored (spec.CLIP_PICTURES)."""
    return self.data[self.places[2 * number] : self.places[2 * number + 1]]

  def rgb(self, image: int, camera: int = 0, out_YxXx3=None) -> np.ndarray:
    """uint8 [Y, X, 3]; ValueError where the bytes are damaged. `out` is filled and returned where it has the picture's size."""
    if self.codec == H264:
      return self.decoded[camera][image]
    data = self.picture(camera * self.num_images + image)
    if out_YxXx3 is not None:
      # The header is not read beforehand: that costs 3 % of decoding the picture. A smaller one may then be in a part of `out`.
      try:
        if simplejpeg.decode_jpeg(data, "RGB", buffer=out_YxXx3).shape == out_YxXx3.shape:
          return out_YxXx3
      except ValueError:
        return simplejpeg.decode_jpeg(data, colorspace="RGB")  # larger than `out`, or damaged: then it raises once more
    return simplejpeg.decode_jpeg(data, colorspace="RGB")

  def jpeg(self, image: int, camera: int = 0) -> bytes:
    if self.codec == H264:
      return mp4.encode(self.rgb(image, camera))
    return bytes(self.picture(camera * self.num_images + image))

  @functools.cached_property
  def decoded(self) -> list[list[np.ndarray]]:
    """Of H.264: the pictures of every camera."""
    return [decode_h264(self.picture(camera), self.num_images) for camera in range(len(self.cameras))]


def cut(
  episode: schema.Episode, labels: schema.Labels, stride: int = 1, images: int = spec.CLIP_IMAGES, codec: str = JPEG
) -> Iterator[dict]:
  """An episode of F frames -> records of ceil(ceil(F / stride) / images) clips of nearly the same length, as `serialize` takes them.

  Near-equal, so that no clip of one picture is left over: the pipeline draws clips, and a frame of a short clip would be seen too often.
  """
  edges = clip_edges(episode.num_frames, stride, images)
  for first, last in itertools.pairwise(edges):
    start, end = first * stride, min(last * stride, episode.num_frames)
    tail = min(end + spec.TAIL_FRAMES, episode.num_frames)
    jpeg_CxN = [camera[start:end:stride] for camera in episode.jpeg_CxF]
    yield {
      "episode": f"{episode.source}/{episode.id}",
      "text": _text(episode, start, end),
      "embodiment": episode.embodiment,
      "cameras": ",".join(episode.camera_names),
      "codec": codec,
      "pictures": [encode_h264(jpeg_N) for jpeg_N in jpeg_CxN] if codec == H264 else [jpeg for jpeg_N in jpeg_CxN for jpeg in jpeg_N],
      "start": start,
      "stride": stride,
      "rate_hz": episode.rate_hz,
      "intrinsics": episode.intrinsics_Cx3x3,
      "T_world_camera": episode.T_world_camera_CxFx4x4[:, start:end:stride].reshape(-1, 4, 4),
      "keypoints": episode.keypoints_Fx2xPx3[start:end:stride],
      "T_world_wrist": labels.T_world_wrist_Fx2x4x4[start:tail],
      "joints": labels.joints_Fx2xJ[start:tail],
      "valid": labels.valid_Fx2[start:tail],
      "residual_m": labels.residual_m_Fx2[start:tail],
    }


def clip_edges(num_frames: int, stride: int, images: int) -> list[int]:
  """First picture of every clip of an episode, counted in its pictures, and their number at the end."""
  pictures = -(-num_frames // stride)
  count = -(-pictures // images)
  return [pictures * i // count for i in range(count + 1)]


def whole(episode: schema.Episode, labels: schema.Labels) -> dict:
  """The episode's record without pictures, as `serialize` takes it."""
  return {
    "episode": f"{episode.source}/{episode.id}",
    "text": episode.text,
    "embodiment": episode.embodiment,
    "cameras": ",".join(episode.camera_names),
    "rate_hz": episode.rate_hz,
    "intrinsics": episode.intrinsics_Cx3x3,
    "T_world_camera": episode.T_world_camera_CxFx4x4.reshape(-1, 4, 4),
    "keypoints": episode.keypoints_Fx2xPx3,
    "confidence": episode.confidence_Fx2xP,
    "T_world_wrist": labels.T_world_wrist_Fx2x4x4,
    "joints": labels.joints_Fx2xJ,
    "valid": labels.valid_Fx2,
    "residual_m": labels.residual_m_Fx2,
  }


def _text(episode, start, end) -> str:
  """The finer text that covers the clip's frames whole, the shortest of them; of one hand it says of which, and the other's comes with it.

  Where none does but spans leave no gap, the clip has the text of the most of its frames; else the episode's.
  """
  finest = {side: _finest([s for s in episode.spans if s.side == side], episode.rate_hz, start, end) for side in _WHOSE}
  if finest[""]:
    return finest[""]
  hands = [f"{side.capitalize()} hand: {finest[side]}" for side in _WHOSE[1:] if finest[side]]
  return " ".join(hands) or episode.text


def _finest(spans, rate_hz, start, end) -> str:
  """The text of one side's spans for the frames start .. end - 1; "" where they leave a gap."""
  covering = [s for s in spans if s.start_s * rate_hz <= start + 0.5 and s.end_s * rate_hz >= end - 0.5]
  if covering:
    return min(covering, key=lambda s: (s.end_s - s.start_s, s.text)).text
  shared = [min(s.end_s * rate_hz, end) - max(s.start_s * rate_hz, start) for s in spans]
  told = sum(max(frames, 0.0) for frames in shared)
  if told <= 0 or told < end - start - 1:
    return ""
  return spans[int(np.argmax(shared))].text


def features(numbers, texts, pictures: bool, num_joints: int):
  """TFDS features of a record. Needs no TensorFlow."""
  import tensorflow_datasets as tfds  # here, so that training never imports the writer's library

  table = {name: tfds.features.Text() for name in texts}
  if pictures:
    table[spec.CLIP_PICTURES] = tfds.features.Tensor(shape=(None,), dtype=np.object_)
  for name, (dtype, shape) in numbers.items():
    shape = tuple(num_joints if n == "J" else n for n in shape)
    table[name] = tfds.features.Tensor(shape=shape, dtype=dtype, encoding=tfds.features.Encoding.BYTES)
  return tfds.features.FeaturesDict(table)


def serialize(record: dict, record_features, numbers) -> bytes:
  """record_features: of `features`, with the same numbers."""
  typed = {name: np.asarray(record[name], dtype) for name, (dtype, _) in numbers.items()}
  if spec.CLIP_PICTURES in record:
    typed[spec.CLIP_PICTURES] = np.array(record[spec.CLIP_PICTURES], dtype=np.object_)
  return example.in_order(record_features.serialize_example(record | typed))


def read_clip(data: bytes | memoryview) -> Clip:
  """ValueError where the bytes are no clip record. The arrays are views of the bytes, and cannot be written."""
  values, arrays = _decode(data, spec.CLIP_NUMBERS, spec.CLIP_TEXTS)
  cameras = _cameras(values["cameras"])
  pictures = len(cameras) * (1 if values["codec"] == H264 else len(arrays["keypoints"]))
  rows = {len(arrays[name]) for name in ("T_world_wrist", "joints", "valid", "residual_m")}
  if len(arrays[spec.CLIP_PICTURES]) != 2 * pictures or len(rows) != 1 or arrays["stride"] < 1:
    raise ValueError(f"not a record of this version: {len(arrays[spec.CLIP_PICTURES]) // 2} pictures and labels of {sorted(rows)} frames")
  if (len(arrays["keypoints"]) - 1) * arrays["stride"] >= min(rows):
    raise ValueError(f"not a record of this version: its last picture is past the {min(rows)} frames of its labels")
  return Clip(
    **values | {"cameras": cameras},
    start=int(arrays["start"]),
    stride=int(arrays["stride"]),
    rate_hz=float(arrays["rate_hz"]),
    data=data,
    places=arrays[spec.CLIP_PICTURES],
    intrinsics_Cx3x3=arrays["intrinsics"],
    T_world_camera_CxNx4x4=arrays["T_world_camera"].reshape(len(cameras), -1, 4, 4),
    keypoints_Nx2xPx3=arrays["keypoints"],
    T_world_wrist_Fx2x4x4=arrays["T_world_wrist"],
    joints_Fx2xJ=arrays["joints"],
    valid_Fx2=arrays["valid"],
    residual_m_Fx2=arrays["residual_m"],
  )


@functools.lru_cache(maxsize=1024)
def _cameras(names: str) -> tuple[str, ...]:
  """One and the same tuple for all clips of a data set: what looks it up in a dict, as each row does, finds it where it was."""
  return tuple(names.split(","))


def read_labels(data: bytes) -> tuple[dict, schema.Labels]:
  """An episode record -> its texts and numbers by name, and its Labels."""
  values, arrays = _decode(data, spec.EPISODE_NUMBERS, spec.EPISODE_TEXTS)
  labels = schema.Labels(arrays["T_world_wrist"], arrays["joints"], arrays["residual_m"], arrays["valid"])
  return values | arrays, labels


@functools.cache
def _layout(of_clips: bool):
  """(name, dtype, its bytes, shape for reshape or None where it has the joints' number) of every array of a record."""
  table = spec.CLIP_NUMBERS if of_clips else spec.EPISODE_NUMBERS
  shapes = {name: None if "J" in shape else tuple(-1 if n is None else n for n in shape) for name, (_, shape) in table.items()}
  return tuple((name, np.dtype(dtype), np.dtype(dtype).itemsize, shapes[name]) for name, (dtype, _) in table.items())


def _decode(data, numbers, texts):
  """-> ({name: text}, {name: array})."""
  found = example.parse(data)
  try:
    values = {name: str(data[found[name][0] : found[name][1]], "utf-8") for name in texts}
    arrays = {}
    begin, end = found["valid"]
    rows = (end - begin) // 2  # F: one byte a hand
    for name, dtype, size, shape in _layout(numbers is spec.CLIP_NUMBERS):
      begin, end = found[name]
      array = np.frombuffer(data, dtype, (end - begin) // size, begin)
      if shape is None:  # of joints
        shape = (rows, 2, (end - begin) // (8 * rows) if rows else 0)
      arrays[name] = array.reshape(shape) if shape else array[0]
  except (KeyError, IndexError, UnicodeDecodeError, ValueError) as error:
    raise ValueError(f"not a record of this version: {error!r}") from error
  return values, arrays | {spec.CLIP_PICTURES: found.get(spec.CLIP_PICTURES, [])}


def encode_h264(jpeg_N) -> bytes:
  """Pictures of one camera -> H.264 in MP4, one thread, so that the same pictures are the same bytes."""
  buffer = io.BytesIO()
  with av.open(buffer, "w", format="mp4") as container:
    stream = None
    for jpeg in jpeg_N:
      rgb = simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
      if stream is None:
        options = {"crf": _CRF, "g": _GOP, "threads": "1"}
        stream = container.add_stream("libx264", rate=10, options=options)  # the rate is nobody's: pictures are counted
        height, width = (n - n % 2 for n in rgb.shape[:2])  # 4:2:0 halves both
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
      container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb[:height, :width]), format="rgb24")))
    container.mux(stream.encode())
  return buffer.getvalue()


def decode_h264(data, count: int) -> list[np.ndarray]:
  """-> `count` pictures uint8 [Y, X, 3]; ValueError where there are not as many."""
  try:
    with av.open(io.BytesIO(bytes(data))) as container:
      if not container.streams.video:
        raise ValueError("a file without a video")
      container.streams.video[0].thread_type = "NONE"
      rgb_N = [frame.reformat(format="rgb24", threads=1).to_ndarray() for frame in container.decode(video=0)]
  except av.FFmpegError as error:
    raise ValueError(f"not a readable video: {error}") from error
  if len(rgb_N) != count:
    raise ValueError(f"a video of {len(rgb_N)} pictures, expected {count}")
  return rgb_N
