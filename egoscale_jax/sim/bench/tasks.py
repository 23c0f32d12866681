"""The table of tasks."""

from egoscale_jax.sim.bench import cap, card, drawer, fork, pick_place, play, syringe

_ALL = (pick_place.TASK, card.TASK, cap.TASK, syringe.TASK, fork.TASK, cap.SCREW_ON_TASK, drawer.TASK)
TASKS = {task.name: task for task in (*_ALL, play.TASK)}
TRAINED = tuple(task.name for task in _ALL if not task.held_out)
HELD_OUT = tuple(task.name for task in _ALL if task.held_out)
