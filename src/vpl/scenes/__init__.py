"""The drawn data set: images, tags and truth masks that cost nothing and that everybody has.

drawings  the sixteen classes as shapes of colour slots, by a pen
sprites   a drawing as bands of weights, lines and shades, at any side
textures  the ground that a scene stands on
styles    how scenes are drawn, as ranges of numbers
words     what a scene is called: captions, places, colours
draw      (seed, index, style, size) to one scene: picture, mask, tags, caption
tree      scenes as the files of a data set

drawings -> sprites ─┐
styles -> textures ──┼─ draw -> tree
words ───────────────┘
"""
