"""What two or more of the scripts need, one module per noun.

cli.py             argument parsers, arguments that scripts share, one-line errors
errors.py          UserError: a mistake in the user's input, told in one line
files.py           atomic files, staged output folders
interrupts.py      Ctrl-C: held back for a moment, answered once
workers.py         processes that work in parallel
contracts.py       every folder, file and column name; checked reading and writing of tables
imaging.py         any image file -> upright 8-bit RGB; atomic PNG and JPEG writing
geometry.py        polygon, RLE, box, mask, crop: pure functions
class_folders.py   one image's objects -> crops, masks and manifest rows; many processes
prompts.py         three points from a mask: two strategies
split_tables.py    class folders -> paired, pointed and split rows -> the split tables
splits.py          seeded train/val/test by source image, stratified by class
dataset.py         table row -> tensors, preprocessed exactly as SamPredictor does
torchvision_ops.py torchvision beside a CPU-only torch
sam.py             build, find, download and verify a SAM; encode images, decode prompts in a batch
lora.py            add LoRA, count and check what trains, merge
checkpoints.py     the small self-describing checkpoint: save, load, verify
losses.py          mask losses
metrics.py         IoU, Dice, boundary IoU
inference.py       what both inference scripts do with their model
evaluation.py      predict a test table, score it, write it
annotate.py        images without ground truth: masks, overlays, COCO and YOLO for annotation tools
comparison.py      base against tuned: pairing, interval by photos, verdict, what changed most
report.py          a results folder as one page
figures.py         panels, sheets, plots
parity.py          does an exported model compute what the checkpoint computes
onnx_export.py     ONNX: decoder, encoder, int8
hf_export.py       a folder for transformers
weights/           the small SAM that ships with the project
"""
