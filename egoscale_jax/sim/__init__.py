"""The simulated human at a table: MuJoCo scenes, scripted experts, a ray caster and a writer of EgoDex recordings."""
