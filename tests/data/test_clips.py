"""Clips and their bytes: what is cut, how it is stored, and the reader of both."""

import dataclasses
import io

import av
import numpy as np
import pytest
import recordings

from egoscale_jax.data import actions, clips, example, schema, shards, spec, statistics, streams

J = 4
INVALID = [(4, 0), (slice(20, 23),), (70, 1)]


def picture(number, height=48, width=64):
  """A smooth one, another for every number: what H.264 keeps."""
  y, x = np.mgrid[:height, :width]
  rgb = [128 + 90 * np.sin(y / 9 + number / 3), 128 + 90 * np.cos(x / 11 - number / 4), 128 + 60 * np.sin((x + y) / 13)]
  return np.stack(rgb, axis=-1).astype(np.uint8)


def jpegs(count, height=48, width=64):
  return tuple(clips.mp4.encode(picture(i, height, width)) for i in range(count))


def make(frames=100, cameras=("head",), seed=0, pictures=False, **fields):
  """-> (Episode, Labels) with gaps; the JPEGs are pictures, or numbered bytes."""
  views = []
  for number, name in enumerate(cameras):
    pose = np.repeat(recordings.T_WORLD_CAMERA[None], frames, axis=0)
    pose[:, 0, 3] += np.arange(frames) + 1000 * number
    jpeg_F = jpegs(frames) if pictures else tuple(b"\xff\xd8%d %d" % (number, i) for i in range(frames))
    views.append(schema.View(name, jpeg_F, (48, 64), recordings.INTRINSICS + np.float32(number), pose.astype(np.float32)))
  episode = recordings.episode(frames, seed)
  labels = recordings.labels(frames, J, seed, [where for where in INVALID if np.max(np.arange(200)[where[0]]) < frames])
  return dataclasses.replace(episode, **schema.views(*views), **fields), labels


def stored(record, kind=shards.CLIPS) -> bytes:
  numbers = spec.CLIP_NUMBERS if kind is shards.CLIPS else spec.EPISODE_NUMBERS
  return clips.serialize(record, shards.features(kind, J), numbers)


def read(episode, labels, **how) -> list[clips.Clip]:
  return [clips.read_clip(stored(record)) for record in clips.cut(episode, labels, **how)]


@pytest.mark.parametrize(("stride", "images"), [(1, 16), (1, 1), (3, 16), (5, 7), (64, 2)])
@pytest.mark.parametrize("frames", [1, 15, 16, 17, 100, 161])
def test_clips_are_near_equal_and_cover_the_episode_once(frames, stride, images):
  episode, labels = make(frames)
  records = list(clips.cut(episode, labels, stride, images))
  counts = [len(record["pictures"]) for record in records]
  pictures = -(-frames // stride)
  assert len(records) == -(-pictures // images)
  assert max(counts) <= images
  assert max(counts) - min(counts) <= 1
  assert [jpeg for record in records for jpeg in record["pictures"]] == list(episode.jpeg_F[::stride])
  assert [record["start"] for record in records] == [stride * n for n in np.cumsum([0, *counts[:-1]])]
  for record, count in zip(records, counts):
    here = record["start"] + stride * np.arange(count)
    np.testing.assert_array_equal(record["keypoints"], episode.keypoints_Fx2xPx3[here])
    np.testing.assert_array_equal(record["T_world_camera"], episode.T_world_camera_Fx4x4[here])
    end = min(record["start"] + stride * count, frames)
    for name in ("joints", "valid", "residual_m", "T_world_wrist"):
      assert len(record[name]) == min(end + spec.TAIL_FRAMES, frames) - record["start"], name
  own = [clips.read_clip(stored(record)).num_frames for record in records]
  assert sum(own) == frames


@pytest.mark.parametrize("stride", [1, 3])
@pytest.mark.parametrize(("horizon", "step"), [(40, 1), (32, 2), (1, 64)])
def test_a_chunk_from_a_clip_is_the_chunk_from_the_episode(stride, horizon, step):
  episode, labels = make()
  steps = step * np.arange(horizon + 1)
  counted = 0
  for clip in read(episode, labels, stride=stride):
    frame_B = [image * clip.stride for image in range(clip.num_images)]
    got = chunks(clip, frame_B, horizon, step)
    frames_BxT = clip.start + np.array(frame_B)[:, None] + steps
    inside = frames_BxT < 100
    frames_BxT = np.minimum(frames_BxT, 99)
    valid = labels.valid_Fx2[frames_BxT] & inside[..., None]
    expected = actions.make_chunks(labels.T_world_wrist_Fx2x4x4[frames_BxT], labels.joints_Fx2xJ[frames_BxT], valid)
    np.testing.assert_array_equal(got[0], np.where(expected[1], NORMALIZER.normalize(expected[0]), 0.0))
    np.testing.assert_array_equal(got[1], expected[1])
    counted += got[1].sum()
  assert counted > 100


def test_a_chunk_does_not_depend_on_those_beside_it():
  episode, labels = make()
  assert not labels.valid_Fx2.all()
  labels = [dataclasses.replace(labels, valid_Fx2=np.ones_like(labels.valid_Fx2)), labels]
  clips_N = [clip for one in labels for clip in read(episode, one)]
  streams_N = [streams.make(clip, 0, NORMALIZER, None) for clip in clips_N]
  assert {s.whole for s in streams_N} == {True, False}
  frames = [clip.num_frames - 1 for clip in clips_N]  # the last clips' chunks end past their episode
  together = chunks_of(streams_N, frames, 30, 1)
  for row, (clip, frame) in enumerate(zip(clips_N, frames)):
    for all_rows, alone in zip(together, chunks(clip, [frame], 30, 1)):
      np.testing.assert_array_equal(all_rows[row], alone[0])


_WIDTH = actions.action_dim(J)
_ALL = np.ones(_WIDTH, bool)
NORMALIZER = statistics.Normalizer(
  np.linspace(-3, -1, _WIDTH, dtype=np.float32), np.linspace(1, 4, _WIDTH, dtype=np.float32), _ALL, _ALL, _ALL
)


def chunks(clip, frame_B, horizon, step):
  """As the pipeline makes them."""
  return chunks_of([streams.make(clip, 0, NORMALIZER, None)] * len(frame_B), frame_B, horizon, step)


def chunks_of(streams_B, frame_B, horizon, step):
  action, mask = np.empty((len(frame_B), horizon, 2, _WIDTH // 2), np.float32), np.empty((len(frame_B), horizon, 2, _WIDTH // 2), bool)
  streams.chunks(streams_B, frame_B, step, streams.space(NORMALIZER, horizon), action, mask)
  return action.reshape(*action.shape[:2], -1), mask.reshape(*action.shape[:2], -1)


def same(got, expected):
  """Bit by bit: NaN equals NaN, and -0 is not 0."""
  expected = np.asarray(expected)
  assert got.dtype == expected.dtype
  assert got.shape == expected.shape
  assert got.tobytes() == expected.tobytes()


def test_round_trip_is_bit_exact_and_nan_stays_nan():
  episode, labels = make(cameras=("head", "left wrist"), text="Gieß den Tee ein.")
  labels.joints_Fx2xJ[7, 1] = -0.0
  labels.joints_Fx2xJ[8, 1] = np.float32(1e-42)
  for record in clips.cut(episode, labels):
    clip = clips.read_clip(stored(record))
    told = {"T_world_wrist": clip.T_world_wrist_Fx2x4x4, "joints": clip.joints_Fx2xJ, "valid": clip.valid_Fx2}
    told |= {"residual_m": clip.residual_m_Fx2, "keypoints": clip.keypoints_Nx2xPx3, "intrinsics": clip.intrinsics_Cx3x3}
    for name, array in told.items():
      same(array, record[name])
    same(clip.T_world_camera_CxNx4x4.reshape(-1, 4, 4), record["T_world_camera"])
    assert [clip.picture(i) for i in range(2 * clip.num_images)] == record["pictures"]
    for name in ("episode", "text", "embodiment", "codec", "start", "stride", "rate_hz"):
      assert getattr(clip, name) == record[name], name
    assert clip.cameras == ("head", "left wrist")
    assert np.isnan(clip.joints_Fx2xJ[~clip.valid_Fx2]).all()
  record = clips.whole(episode, labels)
  values, again = clips.read_labels(stored(record, shards.EPISODES))
  for name in ("intrinsics", "T_world_camera", "keypoints", "confidence"):
    same(values[name], record[name])
  for field in dataclasses.fields(schema.Labels):
    same(getattr(again, field.name), getattr(labels, field.name))
  assert (values["text"], values["embodiment"], values["cameras"]) == (episode.text, "human", "head,left wrist")


@pytest.mark.parametrize("codec", [clips.JPEG, clips.H264])
def test_pictures_of_two_cameras_come_back_each_at_its_place(codec):
  episode, labels = make(20, ("head", "left"), pictures=True)
  right = tuple(clips.mp4.encode(picture(100 + i)) for i in range(20))
  episode = dataclasses.replace(episode, jpeg_CxF=(episode.jpeg_F, right))
  worst = []
  for clip in read(episode, labels, stride=3, images=4, codec=codec):
    for image in range(clip.num_images):
      for camera, first in enumerate((0, 100)):
        rgb = clip.rgb(image, camera)
        assert rgb.dtype == np.uint8
        worst.append(psnr(rgb, picture(first + clip.start + 3 * image)))
        assert psnr(clips.simplejpeg.decode_jpeg(clip.jpeg(image, camera)), rgb) > 35
  assert len(worst) == 2 * 7
  assert min(worst) > 33  # dB; the next picture is at 25
  assert psnr(picture(0), picture(3)) < 25


def psnr(a, b):
  error = np.mean((a.astype(np.float64) - b) ** 2)
  return 10 * np.log10(255**2 / max(error, 1e-9))


def test_rgb_fills_what_it_is_given():
  clip = read(*make(20, pictures=True))[0]
  out = np.empty((48, 64, 3), np.uint8)
  assert clip.rgb(3, out_YxXx3=out) is out
  np.testing.assert_array_equal(out, clip.rgb(3))
  assert clip.rgb(3, out_YxXx3=np.empty((24, 64, 3), np.uint8)).shape == (48, 64, 3)


def test_h264_is_the_same_bytes_every_time_and_smaller():
  pictures = jpegs(16, 96, 128)
  data = clips.encode_h264(pictures)
  assert clips.encode_h264(pictures) == data
  assert 3 * len(data) < sum(map(len, pictures))
  with av.open(io.BytesIO(data)) as container:
    assert container.streams.video[0].codec_context.name == "h264"


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (33, 64)])
def test_h264_of_odd_sizes_leaves_the_last_row_and_column(size):
  """So that the principal point stays where it is."""
  height, width = size
  pictures = clips.decode_h264(clips.encode_h264(jpegs(5, height, width)), 5)
  for i, rgb in enumerate(pictures):
    assert rgb.shape == (height - height % 2, width - width % 2, 3)
    assert psnr(rgb, picture(i, height, width)[: rgb.shape[0], : rgb.shape[1]]) > 33


def test_damaged_videos_are_value_errors():
  data = clips.encode_h264(jpegs(8))
  with pytest.raises(ValueError, match="a video of 8 pictures, expected 7"):
    clips.decode_h264(data, 7)
  for damaged in (b"", b"no video", data[: len(data) // 2]):
    with pytest.raises(ValueError, match="not a readable video"):
      clips.decode_h264(damaged, 8)
  sound = io.BytesIO()
  with av.open(sound, "w", format="wav") as container:
    stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
    frame.sample_rate = 8000
    container.mux(stream.encode(frame))
  with pytest.raises(ValueError, match="a file without a video"):
    clips.decode_h264(sound.getvalue(), 8)


def test_a_clip_has_the_finest_text_that_covers_it():
  spans = (schema.Span("Reach.", 0.0, 1.2), schema.Span("Both.", 0.0, 3.0), schema.Span("Grasp.", 1.0, 3.0))
  episode, labels = make(100, spans=spans)
  records = list(clips.cut(episode, labels))
  texts = [record["text"] for record in records]
  edges = [record["start"] for record in records] + [100]
  for start, end, text in zip(edges, edges[1:], texts):
    covering = [s for s in spans if s.start_s * 30 <= start and s.end_s * 30 >= end]
    assert text == (min(covering, key=lambda s: s.end_s - s.start_s).text if covering else "Pour the tea.")
  assert texts[0] == "Reach."
  assert "Grasp." in texts
  assert texts[-1] == "Pour the tea."


def text_of(*spans):
  """Of the middle one of three clips, frames 34 .. 66 of 100 at 30 Hz."""
  episode, labels = make(100, spans=spans)
  records = list(clips.cut(episode, labels, images=34))
  assert [record["start"] for record in records] == [0, 33, 66]
  return records[1]["text"]


def test_a_clip_between_two_texts_has_that_of_the_most_of_its_frames():
  assert text_of(schema.Span("Reach.", 0.0, 1.0), schema.Span("Grasp.", 1.0, 1.5), schema.Span("Lift.", 1.5, 3.4)) == "Lift."
  assert text_of(schema.Span("Reach.", 0.0, 1.0), schema.Span("Grasp.", 1.0, 1.8), schema.Span("Lift.", 1.8, 3.4)) == "Grasp."
  assert text_of(schema.Span("Reach.", 0.0, 1.5), schema.Span("Lift.", 1.9, 3.4)) == "Pour the tea.", "nobody says what is done between"


def test_a_clip_says_of_which_hand_a_text_is():
  left, right = schema.Span("hold the cup", 0.0, 3.4, "left"), schema.Span("stir", 0.0, 3.4, "right")
  assert text_of(left, right) == "Left hand: hold the cup Right hand: stir"
  assert text_of(right) == "Right hand: stir"
  assert text_of(left, right, schema.Span("Make tea.", 0.0, 3.4)) == "Make tea."
  assert text_of(schema.Span("stir", 0.0, 1.2, "right")) == "Pour the tea."


def test_example_is_read_as_tensorflow_datasets_reads_it():
  import tensorflow_datasets as tfds

  rng = np.random.default_rng(0)
  names = ["a", "ü", "pictures", "a_name_of_more_than_127_letters_" * 5]
  features = tfds.features.FeaturesDict({name: tfds.features.Tensor(shape=(None,), dtype=np.object_) for name in names})
  for _ in range(100):
    values = {name: [rng.bytes(int(2 ** rng.uniform(0, 15)) - 1) for _ in range(rng.integers(1, 6))] for name in names}
    data = features.serialize_example({name: np.array(v, dtype=np.object_) for name, v in values.items()})
    theirs = features.deserialize_example_np(data)
    places = example.parse(data)
    assert set(places) == set(names)
    for name in names:
      ours = [data[begin:end] for begin, end in zip(places[name][::2], places[name][1::2])]
      assert ours == list(theirs[name]) == values[name]


def test_features_are_stored_in_the_order_of_their_names():
  """Whatever the process: protobuf's own order changes with every start, and a build would end with other bytes."""
  rng = np.random.default_rng(0)
  names = [f"feature {i}" for i in rng.permutation(20)]
  entry = lambda name: bytes([10, len(name) + 9, 10, len(name)]) + name.encode() + bytes([18, 5, 10, 3, 10, 1, len(name)])  # noqa: E731
  body = b"".join(map(entry, names))
  data = b"\x0a" + bytes([len(body) & 127 | 128, len(body) >> 7]) + body
  ordered = example.in_order(data)
  assert list(example.parse(ordered)) == sorted(names)
  assert len(ordered) == len(data)
  assert example.in_order(ordered) == ordered
  episode, labels = make(16)
  assert list(example.parse(stored(next(clips.cut(episode, labels))))) == sorted((*spec.CLIP_NUMBERS, *spec.CLIP_TEXTS, "pictures"))


def mutations(data, count, seed):
  """Truncated, one to eight bytes changed, cut, doubled, or a run of 0xff."""
  rng = np.random.default_rng(seed)
  for _ in range(count):
    at, length = int(rng.integers(len(data))), int(2 ** rng.integers(0, 12))
    changed = bytearray(data)
    for place in rng.integers(0, len(data) if rng.random() < 0.5 else 300, int(rng.integers(1, 9))):
      changed[place] = rng.integers(256)
    cases = (data[:at], bytes(changed), data[:at] + data[at + length :], data[:at] + data[at : at + length] + data[at:])
    yield (*cases, data[:at] + b"\xff" * length + data[at + length :])[rng.integers(5)]


@pytest.mark.parametrize("codec", [clips.JPEG, clips.H264])
def test_damaged_records_are_value_errors_and_nothing_else(codec):
  episode, labels = make(16, pictures=True)
  data = stored(next(clips.cut(episode, labels, codec=codec)))
  refused = 0
  for number, damaged in enumerate(mutations(data, 4000, seed=1)):
    try:
      example.parse(damaged)
      clip = clips.read_clip(damaged)
      if number % 10 == 0 or codec == clips.JPEG:
        clip.rgb(clip.num_images - 1)
    except ValueError:
      refused += 1
  assert refused > 2000
  for cut in range(0, len(data), 97):
    with pytest.raises(ValueError, match=r"not a|cannot reshape"):
      clips.read_clip(data[:cut])


def test_a_long_run_of_ones_is_refused_at_once():
  """Not read as one number of 300 kB, which took minutes."""
  with pytest.raises(ValueError, match="more than ten bytes"):
    example.parse(b"\xff" * 300_000)


def test_numbers_and_other_records_are_refused():
  with pytest.raises(ValueError, match="feature x holds no bytes"):
    example.parse(bytes([10, 13, 10, 11, 10, 1, 120, 18, 6, 26, 4, 10, 2, 1, 2]))
  episode, labels = make(16)
  with pytest.raises(ValueError, match="not a record of this version"):
    clips.read_clip(stored(clips.whole(episode, labels), shards.EPISODES))
