"""What two or more of the scripts need, in folders that follow the pipeline. Imports go one way:

    the modules of this folder <- data <- model <- results <- export <- the scripts; training stands beside results

cli.py         argument parsers, arguments that scripts share, one-line errors
errors.py      UserError: a mistake in the user's input, reported in one line
files.py       atomic files, staged output folders
workers.py     processes and threads that work in parallel
ranks.py       which of torchrun's processes this is
contracts.py   every folder, file and column name
tables.py      checked reading and writing of tables and their cells
drawing.py     text, layout, scaled examples: what pictures are made of
plots.py       training curves, base against tuned
sam_types.py   SAM architectures, LoRA targets, losses: what flags choose from
sam.py         the door for users: load_sam
data/          annotations and photos -> class folders -> tables -> rows with their prompts
model/         SAM itself: build, load, adapt, encode images, decode prompts
training/      what train.py's loop is made of
results/       predictions, scores, reports
export/        other formats of a tuned model
weights/       the small SAM that ships with the project
"""

import os

# Before torch is imported: threads that spin while they wait halve the speed where others share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
