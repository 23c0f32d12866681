"""The vision-language-action model: Linen modules and pure functions of parameters; every size comes from the config.

Axis letters: B batch, C images, Y X image, L tokens of the VLM, T action steps, D width, N heads, K key/value heads (in the expert: its
1 + T tokens), H head width, V vocabulary, E embodiments, A action dim, S state dim. Flow time: t = 0 noise, t = 1 action.
"""
