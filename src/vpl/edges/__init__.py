"""Files to arrays and back: the only room that knows formats, folders and URLs of users.

storage   files, whole or not at all      locks     one process at a time
images    photographs and masks           names     file names of a list -> files
tags      texts of people -> class names  onehot    the field's pickled tags, not run
layouts   lists as they lie on disk       datasets  lists of samples
truth     masks of any numbering          sheet     pictures of label maps
vocxml    VOC's annotation of a photograph

tag files, photographs, masks ──> Sample, arrays ──> masks, pictures
"""
