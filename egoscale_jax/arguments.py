"""The options of `egoscale VERB`, each verb with one example that works; cli.py does what they ask for."""

import argparse
import os

BODIES = ("sharpa_wave", "dex3", "human")  # of the bench (sim/bench)
TASKS = "pick_place,card,unscrew,syringe,fork"  # those that are trained; held out: screw_on,drawer; and play
SOURCES = (
  "aria",
  "egodex",
  "egoverse",
  "landmarks",
  "lerobot",
  "openego",
  "rlds",
  "simulated",
  "video",
  "vitra",
)  # readers of data/sources
COLUMNS = "lerobot, rlds: which columns mean what (data/sources/columns.py); video: its video.json (data/sources/video.py)"

TIPS = "#thumb:LINK+index:LINK+... where its fingertips are not found"  # after the file of a hand
KEYPOINTS = (
  ".npy [frames, 21, 3]: wrist, then thumb, index, middle, ring, little, each base to tip (MediaPipe's order); metres, any frame of "
  "reference; NaN = missing; .npz: `keypoints` and, if any, `confidence`"
)


def parser(functions):
  """functions: {verb: what it does with the parsed arguments}."""
  parser = argparse.ArgumentParser(
    prog="egoscale", description="From egocentric human video to a dexterous robot policy.", allow_abbrev=False
  )
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

  def verb(name, summary, example):
    sub = verbs.add_parser(
      name,
      help=summary,
      description=summary,
      epilog=f"example:\n  {example}",
      formatter_class=argparse.RawDescriptionHelpFormatter,
      allow_abbrev=False,
    )
    sub.set_defaults(function=functions[name])
    return sub

  def recordings(sub, required=True):
    sub.add_argument("--source", required=required, choices=SOURCES, help="the format of the recordings")
    sub.add_argument("--input", required=required, metavar="DIR", help="folder of recordings")
    sub.add_argument("--columns", default="", metavar="FILE", help=COLUMNS)

  sub = verb("simulate", "Write simulated recordings in EgoDex's format.", "egoscale simulate --output=recordings --episodes=20")
  sub.add_argument("--output", required=True, metavar="DIR", help="a new or empty folder")
  sub.add_argument("--episodes", type=int, default=20, metavar="N", help="how many (default 20); the tasks take turns")
  sub.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same recordings (default 0)")
  sub.add_argument("--image_size", type=int, default=96, metavar="PIXELS", help="side of the square frames (default 96)")
  sub.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one a core)")

  def bench(sub, split):
    sub.add_argument("--body", default="sharpa_wave", choices=BODIES, help="who acts (default sharpa_wave)")
    sub.add_argument("--tasks", default=TASKS, metavar="A,B", help=f"default {TASKS}; there are screw_on, drawer, play too")
    sub.add_argument("--split", default=split, choices=("train", "validation", "lab"), help=f"whose rooms and things (default {split})")
    sub.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same scenes (default 0)")
    sub.add_argument("--image_size", type=int, default=64, metavar="PIXELS", help="side of the square frames (default 64)")
    sub.add_argument("--workers", type=int, default=os.cpu_count(), metavar="N", help="processes (default: one a core)")
    sub.add_argument("--output", required=True, metavar="DIR", help="a new folder")

  sub = verb(
    "record",
    "Experts on the bench, recorded: EgoDex files of a human (--source=simulated), a LeRobot data set of a robot (--source=lerobot).",
    "egoscale record --body=human --tasks=pick_place,play --episodes=200 --output=recordings",
  )
  bench(sub, "train")
  sub.add_argument("--episodes", type=int, default=20, metavar="N", help="how many (default 20); the tasks take turns")
  sub.add_argument("--takes", type=int, default=1, metavar="N", help="so many of each scene and goal, one after the other (default 1)")
  sub.add_argument(
    "--aligned", action="store_true", help="a human before the robot's camera; with the same seed, the robot's scenes and goals"
  )
  sub.add_argument("--clean", action="store_true", help="a human's labels without the noise of trackers")

  sub = verb(
    "rollout",
    "Closed-loop trials on the bench: trials.jsonl, summary.json, videos, and a table.",
    "egoscale rollout --checkpoint=runs/posttrain --tasks=pick_place,card --trials=50 --seed=0 --output=runs/posttrain/rollout",
  )
  who = sub.add_mutually_exclusive_group(required=True)
  who.add_argument("--checkpoint", metavar="DIR", help="a work directory of `egoscale train`")
  who.add_argument("--baseline", choices=("hold_still", "expert", "replay"), help="in place of a policy")
  bench(sub, "validation")
  sub.add_argument("--trials", type=int, default=50, metavar="N", help="of each task (default 50)")
  sub.add_argument("--embodiment", default="", metavar="NAME", help="the policy's slot (default: the body's name; human: as a human would)")
  sub.add_argument("--execute", type=int, default=8, metavar="N", help="steps of each chunk that are carried out (default 8)")
  sub.add_argument(
    "--frozen", type=int, default=0, metavar="N", help="real-time chunking: steps of the old chunk that are kept (default 0)"
  )
  sub.add_argument(
    "--ramp", type=int, default=0, metavar="N", help="real-time chunking: further steps that fade to the new one (default 0)"
  )

  sub = verb(
    "doctor", "Check recordings, and list those to leave out.", "egoscale doctor --source=egodex --input=recordings --output=doctor.json"
  )
  recordings(sub, required=False)
  sub.add_argument("--shards", metavar="DIR", help="in place of --source and --input: is a folder of `egoscale prepare` whole")
  sub.add_argument("--output", metavar="FILE", help="the .json to write: every finding with its time, and the ids to exclude")
  sub.add_argument("--html", metavar="FILE", help="the page to write: a table of the findings, and pictures of the worst episodes")
  sub.add_argument("--hand", metavar="NAME|FILE", help="retarget humans to this hand too, for the findings of the labels (slower)")
  sub.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read recordings (default 1)")

  sub = verb(
    "prepare", "Recordings to shards: read, check, label, store.", "egoscale prepare --source=egodex --input=recordings --output=shards"
  )
  recordings(sub)
  sub.add_argument("--exclude", metavar="FILE", help="recordings to leave out, a list that `egoscale doctor` wrote")
  sub.add_argument(
    "--output", required=True, metavar="DIR", help="a folder for the shards; a build that was stopped goes on, new recordings are added"
  )
  sub.add_argument(
    "--hand",
    metavar="NAME|FILE",
    help="robot hand to retarget humans to (default sharpa_wave), or that a recorded robot has (default: its own): a built-in one, or"
    f" LEFT.urdf,RIGHT.urdf, each with {TIPS}",
  )
  sub.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read recordings (default 1)")
  sub.add_argument("--image_size", type=int, default=256, metavar="PIXELS", help="longest shorter side of the stored frames (default 256)")
  sub.add_argument("--validation", type=float, default=0.1, metavar="SHARE", help="share of the scenes held out (default 0.1)")
  sub.add_argument("--stride", type=int, default=1, metavar="N", help="store every N-th picture (default 1); labels stay at the full rate")
  sub.add_argument("--images", type=int, default=16, metavar="N", help="pictures a record (default 16)")
  sub.add_argument("--codec", default="jpeg", choices=("jpeg", "h264"), help="of the pictures (default jpeg; h264: smaller, slower)")
  sub.add_argument("--beam", default="", metavar="OPTIONS", help="build on Apache Beam: its options, e.g. --beam='--runner=DirectRunner'")
  sub.add_argument(
    "--bucket", default="", metavar="MOUNT=ADDRESS", help="of --beam: workers fetch from gs://… what is below MOUNT here (docs/dataflow.md)"
  )

  sub = verb(
    "export",
    "Recordings to a data set of another format.",
    "egoscale export --to=lerobot --source=egodex --input=recordings --output=out",
  )
  recordings(sub)
  sub.add_argument("--to", required=True, choices=("lerobot",), help="LeRobot 3.0")
  sub.add_argument("--output", required=True, metavar="DIR", help="a new folder")
  sub.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read recordings (default 1)")
  sub.add_argument("--image_size", type=int, default=256, metavar="PIXELS", help="longest shorter side of the stored frames (default 256)")

  sub = verb(
    "retarget",
    "Human hand keypoints to the joints of a robot hand.",
    "egoscale retarget --hand=sharpa_wave --side=right --keypoints=keypoints.npy --output=joints.npz",
  )
  sub.add_argument(
    "--hand", default="sharpa_wave", metavar="NAME|FILE", help=f"a built-in hand, or a .urdf or .xml, with {TIPS} (default sharpa_wave)"
  )
  sub.add_argument("--side", required=True, choices=("left", "right"), help="of the human and of the robot hand")
  sub.add_argument("--keypoints", required=True, metavar="FILE", help=KEYPOINTS)
  sub.add_argument("--output", required=True, metavar="FILE", help="the .npz to write; `egoscale view` draws it")
  sub.add_argument("--fingers", metavar="thumb:LINK,…", help="the links or sites of the fingertips, if the hand's file does not tell")
  sub.add_argument("--scale", type=float, metavar="X", help="robot's size over the human's (default: from the keypoints)")
  sub.add_argument("--rate", type=float, default=30.0, metavar="HZ", help="frames a second (default 30)")

  config_help = "a config, then its overrides: --config=configs/X.py[:debug] --config.key=value ..."
  sub = verb(
    "train",
    "Train, or go on with what is in the work directory.",
    "egoscale train --config=configs/pretrain.py:debug --workdir=runs/try --config.data.shards=shards\n\n"
    "exit codes: 0 finished; 1 a mistake, in one line; 75 preempted: SIGTERM came, the step is saved, the same command goes on",
  )
  sub.add_argument("--workdir", required=True, metavar="DIR", help="checkpoints, metrics.jsonl and all that a later stage needs")
  sub.add_argument("--config", required=True, metavar="FILE[:debug]", help=config_help)

  sub = verb(
    "plan",
    "Compile the train step for a TPU pod without one: does it fit, how fast, what does it cost.",
    "egoscale plan --config=configs/pretrain.py --topology=v5p:4x8x8",
  )
  sub.add_argument("--config", required=True, metavar="FILE[:debug]", help=config_help)
  sub.add_argument("--topology", required=True, metavar="CHIP:SHAPE", help="v5e:16x16, v5p:4x8x8, v6e:16x16 ...")
  sub.add_argument("--slices", type=int, default=1, metavar="N", help="so many of them, joined by the data centre's network (default 1)")
  sub.add_argument("--json", metavar="FILE", help="the figures too, as docs/pods.md names them; of --sweep a list, the fastest first")
  sub.add_argument(
    "--sweep",
    nargs="*",
    metavar="KEY=VALUE,...",
    help="every choice of these, ranked, e.g. mesh.fsdp=16,64 model.remat=none,full; nothing: meshes and remat (minutes a choice)",
  )

  sub = verb(
    "convert", "A public checkpoint to a work directory, or back.", "egoscale convert --from=gr00t_n1_7 --input=DIR --output=runs/groot"
  )
  way = sub.add_mutually_exclusive_group(required=True)
  way.add_argument(
    "--from", dest="source", choices=("gr00t_n1_7", "qwen3_vl"), help="--input is such a checkpoint, --output a work directory"
  )
  way.add_argument("--to", choices=("gr00t_n1_7",), help="--input is a work directory, --output a folder for such a checkpoint")
  sub.add_argument(
    "--input", required=True, metavar="DIR", help="a folder of the hub, hf://OWNER/NAME, gs://BUCKET/DIR, or a work directory"
  )
  sub.add_argument("--output", required=True, metavar="DIR", help="a new folder")
  sub.add_argument("--statistics", default="", metavar="FILE", help="statistics.json of a work directory, to run the policy as it is")
  sub.add_argument("--config", default="configs/posttrain.py", metavar="FILE[:debug]", help=config_help + " (all but the model's sizes)")

  sub = verb(
    "evaluate",
    "Validation with fixed noise: validation.json and a picture in the work directory.",
    "egoscale evaluate --workdir=runs/try",
  )
  sub.add_argument("--workdir", required=True, metavar="DIR", help="a work directory of `egoscale train`")
  own = " (its validation and data.shards are used; default: the run's own)"
  sub.add_argument("--config", default="", metavar="FILE[:debug]", help=config_help + own)

  sub = verb(
    "scaling",
    "A scaling study: nested subsets of the hours x model sizes x seeds, each a run of its own; a run that is complete is not made again.\n"
    "With --attribute: sources and tasks ranked by what they do to a target's validation loss, at a checkpoint.",
    "egoscale scaling --config=configs/scaling.py:micro --workdir=runs/scaling --config.data.shards=shards",
  )
  sub.add_argument("--workdir", required=True, metavar="DIR", help="the study; with --attribute a work directory of `egoscale train`")
  sub.add_argument("--config", default="", metavar="FILE[:MODE]", help=config_help)
  sub.add_argument("--attribute", action="store_true", help="rank the training data of a run (docs/scaling.md)")
  sub.add_argument(
    "--target", default="", metavar="DIR", help="--attribute: shards whose validation split is the target (default: its own)"
  )
  sub.add_argument("--batches", type=int, default=8, metavar="N", help="--attribute: of each group and of the target (default 8)")
  sub.add_argument("--batch_size", type=int, default=0, metavar="N", help="--attribute: (default: the run's validation.batch_size)")

  sub = verb(
    "study",
    "The study of the paper's claims on the bench: recordings, stages, trials, one page; a step that is complete is not made again.",
    "egoscale study --config=configs/study.py:micro --workdir=runs/study",
  )
  sub.add_argument("--workdir", required=True, metavar="DIR", help="the study; the same command goes on with it")
  sub.add_argument("--config", required=True, metavar="FILE[:MODE]", help=config_help)

  sub = verb("serve", "A policy server for robots: openpi's and GR00T's clients.", "egoscale serve --checkpoint=runs/quickstart")
  sub.add_argument("--checkpoint", required=True, metavar="DIR", help="a work directory of `egoscale train` or `egoscale convert`")
  sub.add_argument("--embodiment", default="", metavar="NAME", help="which, if the policy knows several")
  sub.add_argument("--rate", type=float, default=30.0, metavar="HZ", help="frames a second of what it learned from (default 30)")
  sub.add_argument(
    "--limits", default="", metavar="FILE", help="ranges and speeds of the joints, in place of the hand's own (docs/serve.md)"
  )
  sub.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="to listen at (default 127.0.0.1; 0.0.0.0: all)")
  sub.add_argument(
    "--port", type=int, default=8000, metavar="N", help="openpi's websocket, /healthz, /metrics (default 8000; 0: a free one)"
  )
  sub.add_argument("--zmq-port", type=int, metavar="N", help="GR00T's protocol too, as on 5555 (default: no)")
  sub.add_argument("--token-file", default="", metavar="FILE", help="one word that clients must know")
  sub.add_argument("--tls-cert", default="", metavar="FILE", help="PEM; the websocket is wss then")
  sub.add_argument("--tls-key", default="", metavar="FILE", help="PEM")
  sub.add_argument(
    "--origin", action="append", default=[], metavar="URL", help="a web page's that may connect; again for more (default: none)"
  )
  sub.add_argument("--batch", type=int, default=64, metavar="N", help="most requests that share a call of the model (default 64; 1: none)")
  sub.add_argument("--deadline-ms", type=float, default=5.0, metavar="MS", help="longest that a request waits for others (default 5)")
  sub.add_argument("--max-bytes", type=int, default=2**24, metavar="N", help="of a message (default 16 MiB)")
  sub.add_argument("--rate-limit", type=float, default=1000.0, metavar="N", help="requests a second from one address (default 1000)")
  sub.add_argument("--connections", type=int, default=256, metavar="N", help="websockets at once (default 256)")
  sub.add_argument("--queue", type=int, default=256, metavar="N", help="requests at once; more are told to try again (default 256)")
  sub.add_argument("--drain-s", type=float, default=30.0, metavar="S", help="longest wait for answers under way after SIGTERM (default 30)")

  sub = verb(
    "view",
    "Frames with projected keypoints; with --workdir the true and the predicted chunks too; human and robot hand of a result. Or a page.",
    "egoscale view --input=shards --output=hands.mp4\n  egoscale view --input=runs/try --web",
  )
  sub.add_argument(
    "--input",
    required=True,
    metavar="PATH",
    help="shards, a recording's .hdf5, an .npz of retarget; --web: a work directory, a rollout",
  )
  sub.add_argument("--source", choices=SOURCES, help="--input is a folder of recordings of this format")
  sub.add_argument("--columns", default="", metavar="FILE", help=COLUMNS)
  way = sub.add_mutually_exclusive_group(required=True)
  way.add_argument("--output", metavar="FILE", help=".mp4: an episode; .png: a sheet of its frames")
  way.add_argument("--web", action="store_true", help="a page with the video, the hands in 3-D, chunks and findings (docs/view.md)")
  sub.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="of --web, to listen at (default 127.0.0.1; 0.0.0.0: all)")
  sub.add_argument("--port", type=int, default=8080, metavar="N", help="of --web (default 8080; 0: a free one)")
  sub.add_argument("--episode", type=int, default=0, metavar="N", help="which episode of a folder (default 0)")
  sub.add_argument("--workdir", metavar="DIR", help="a work directory of `egoscale train`")

  sub = verb(
    "report", "One self-contained page on a run.", "egoscale report --workdir=runs/try --shards=shards --output=runs/try/report.html"
  )
  sub.add_argument("--workdir", required=True, metavar="DIR", help="a work directory of `egoscale train`")
  sub.add_argument("--shards", required=True, metavar="DIR", help="the shards that it was trained on")
  sub.add_argument("--output", required=True, metavar="FILE", help="the .html to write")
  return parser
