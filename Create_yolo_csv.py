"""Step 2, YOLO: class folders -> output.csv with every row, and train.csv val.csv test.csv; three clicks for each mask.

Reads   processed_dataset/Class_<name>/{images,masks}, and the manifest instances.csv if there is one
Writes  output.csv: image_path, mask_path, class_id, class_name, point1_x, point1_y, point2_x, point2_y, point3_x,
        point3_y, source_image, split (empty: in a gap of a split by area)
        train.csv val.csv test.csv: the same columns but split (not with --no_split)

    python Create_yolo_csv.py
    python Create_yolo_csv.py --dataset_dir processed_dataset --split 0.7 0.15 0.15 --resplit --overwrite

Points: one near the centre of the mask, and its two farthest-apart points, pulled inside; all inside the mask.
Split: all objects of a photo, and all copies, tiles and video frames of it as far as their names or --group_by tell,
are in the same split; a single photo is split by area. The data set's own train/val/test is kept where it has one; a
split that it lacks is taken from train. Next step: python reformated_csv.py
"""

import argparse
from pathlib import Path

from sam_lora import cli, contracts, files


def get_args_parser() -> argparse.ArgumentParser:
    parser = cli.make_parser(__doc__)
    output = cli.add_split_tables(parser)
    output.add_argument("--no_split", action="store_true",
                        help=f"write only {contracts.OUTPUT_TABLE}; its column split says where each row would go")
    cli.add_follow_links(parser.add_argument_group("links"))
    return parser


def class_of_folder(name: str) -> tuple[str | None, str]:
    """"crack" -> (None, "crack"): YOLO folders carry the name only. A name that is a number, "0", is its own id."""
    return (name if name.isdecimal() else None, name)


def main(args: argparse.Namespace) -> None:
    from sam_lora.data import clicks, label_maps, pairing, split_tables  # heavy imports, not needed for --help
    names = [contracts.OUTPUT_TABLE]
    if not args.no_split:
        names += [contracts.split_table(split) for split in contracts.SPLITS]
    paths = [Path(args.output_dir) / name for name in names]
    files.refuse_existing(paths, args.overwrite)

    if args.split_label_maps:
        maps, masks = label_maps.split_label_maps(args.dataset_dir)
        print(f"{maps} label maps became {masks} masks; they are in {label_maps.LABEL_MAPS_FOLDER}/ now")
    folders = pairing.read_class_folders(args.dataset_dir, class_of_folder, args.follow_links)
    table, skipped = split_tables.place_points(folders, clicks.centre_and_farthest_points, args.num_workers)
    table, notes = split_tables.group_rows(table, args.dataset_dir, split_tables.Told(args.group_by, args.group_csv))
    table, split_notes = split_tables.split_rows(table, args.split, args.seed, args.resplit, args.split_by)
    notes += split_notes + split_tables.write(table, paths)
    print(split_tables.summary(table, folders, skipped), *folders.notes, *notes, sep="\n")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
