"""How `shapes/weights` came to be: an autoencoder, a text-to-image model, an editor, a CLIP and a BLIP, from nothing.

    scenes -> autoencoder -> diffusion (the base) -> editing (the base again, and the editor)
    scenes -> matching (CLIP, BLIP)

Everything is drawn from `scenes.py` with fixed seeds; no other picture or text is used, and never the judge.
"""
