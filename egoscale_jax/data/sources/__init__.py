"""One reader a format. Each has the same interface, and nothing outside of it knows its format:

`SOURCE`, `LICENCE`: its name, and the licence of recordings that tell none themselves.
`find(directory) -> list[Recording]`: the recordings below a directory, in a stable order; lerobot, rlds and video take a config too.
`read(recording, image_size) -> Episode`: one recording, frames as JPEG with the shorter side at most image_size; raises UserError, one line
that names the file and the cause, for whatever the bytes are.

Readers: aria, egodex, egoverse, landmarks, lerobot, openego, rlds, simulated, video, vitra. What they share or are made of: `checks`,
`mp4`, `columns` (which columns of a robot's data set mean what), `parquet`, `fisheye`, `lerobot_meta`, `landmarker`, `monocular`.

Nothing of a recording is ever run: no pickle but through vitra's own unpickler, no class by its name, no path that leaves the folder.
"""
