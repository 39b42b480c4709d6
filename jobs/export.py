"""synthetic corpus -> files that other trainers read: JSON lines, Parquet or a Hugging Face dataset, with a card

python jobs/export.py --config configs/demo.yaml --out runs/demo-export --format hf [section.key=value …]
"""

from sbp_ray.cli import Parser, exit_with
from sbp_ray.logs import set_up_logging


def _run() -> None:
    parser = Parser(prog="jobs/export.py", description="See docs/operations.md.")
    parser.add_argument("--config", required=True, metavar="FILE", help="that of the run")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="a new folder, local or on a store")
    parser.add_argument("--format", choices=("jsonl", "parquet", "hf"), default="hf")
    parser.add_argument("--licence", default="other", metavar="ID", help="of the card, such as cc-by-sa-4.0")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="as the run had them")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    from sbp_ray.cli import with_absolute_folders
    from sbp_ray.config_file import load_config
    from sbp_ray.corpus_export import export_corpus
    from sbp_ray.nodes import locate

    config = with_absolute_folders(load_config(arguments.config, arguments.overrides))
    synthetic, report = locate(config, "synthetic"), locate(config, "report")
    export_corpus(synthetic, report, arguments.out, arguments.format, arguments.licence)


if __name__ == "__main__":
    exit_with(_run)
