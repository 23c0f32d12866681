"""One reader a format. Each module has the same two functions and nothing outside it knows its format:

`find(directory) -> list[Recording]`: the recordings below a directory, in a stable order, without opening them.
`read(recording, image_size) -> Episode`: one recording, frames as JPEG with the shorter side at most image_size; raises UserError.
"""
