"""Train `shapes/weights` from scratch: an autoencoder, a text-to-image model, an editor, a CLIP and a reward model
on BLIP.

    scenes -> autoencoder -> diffusion (the base) -> editing (the base again, and the editor)
    scenes -> pool -> matching (CLIP, BLIP)
    scenes, editor, BLIP -> answers (the reward model)

Everything is drawn from `scenes.py` with fixed seeds; no other picture or text is used, and never the judge.
"""
