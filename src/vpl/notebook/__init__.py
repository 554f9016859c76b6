"""What a notebook calls: photographs in any form go in, results that show themselves come out.

pictures ──> model (VPL: fit, segment) ──┐
         └─> runs (run, predict, check) ─┴──> shown (label maps over their photographs)

pictures  photographs as people have them: PIL images, arrays, paths, files, folders, patterns
shown     results that show themselves
model     the method on images at hand: VPL, segment
runs      a run folder and what it gives: run, check, predict
"""
