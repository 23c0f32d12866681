"""The dexterous bench: one table-top world with physics, three bodies, seven tasks and play. docs/bench.md tells rubrics and figures.

```
  looks.py      numbered people, rooms and objects; those of training and of validation are disjoint
  bodies.py     a human, two 22-joint hands, two 7-joint hands: the same interface, driven by T_world_wrist and joints
  props.py      what stands on the table, as parts of a MuJoCo model
  world.py      the compiled world: one command a frame in, physics and contact-gated grasps, poses out
  actor.py      what an expert's hand can do: reach, grip, carry, press, turn; all of it yields commands
  task.py       Task: build the scene, the expert, watch the stages of the rubric
  pick_place.py card.py cap.py syringe.py fork.py drawer.py play.py     the tasks
  tasks.py      their table
  episode.py    (task, body, split, seed) -> a trial: world, goal, camera; an expert's take of it
  stills.py     scenes with everything moved about -> pictures and where each thing lies, to learn to see by
  noise.py      what trackers do to a human's labels
  recorders.py  takes -> recordings: EgoDex files of the human, a LeRobot data set of the robot
```

A command is what data/actions.py calls a step: both wrists' poses and both hands' joint targets. The wrist is carried there by the end of
the frame (it is a mocap body: no arm, no arm's error), the fingers are servos that push what they meet. World: scene.py's.
"""

RATE_HZ = 15  # frames and commands a second
