"""Files to arrays and back: the only room that knows formats, folders and URLs of users.

storage   files behind URLs          images   photographs and masks       datasets   lists of samples
sheet     pictures of label maps

tag files, photographs, masks ──> Sample, arrays ──> masks, pictures
"""
