"""artifacts -> some of their rows on the terminal: documents, pairs with their cosine, synthetic documents with d1

python jobs/look.py --config configs/demo.yaml pairs --min-cosine 0.8 --matching river [section.key=value …]
"""

from sbp_ray.cli import Parser, exit_with
from sbp_ray.logs import set_up_logging


def _run() -> None:
    parser = Parser(prog="jobs/look.py", description="See docs/operations.md.")
    parser.add_argument("--config", required=True, metavar="FILE", help="that of the run")
    parser.add_argument("what", choices=("documents", "pairs", "synthetic"))
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="as the run had them")
    parser.add_argument("--split", default="train", help="of documents and pairs")
    parser.add_argument("--number", type=int, default=5, help="rows that are shown")
    parser.add_argument("--seed", type=int, default=0, help="chooses them")
    parser.add_argument("--matching", metavar="REGEX", help="only rows with a text in which this is found")
    parser.add_argument("--min-cosine", type=float, default=-1.0, help="of pairs")
    parser.add_argument("--max-cosine", type=float, default=1.0, help="of pairs")
    parser.add_argument("--characters", type=int, default=500, help="shown of each text")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    from sbp_ray.cli import with_absolute_folders
    from sbp_ray.config_file import load_config
    from sbp_ray.look import Choice, show_rows
    from sbp_ray.nodes import locate

    config = with_absolute_folders(load_config(arguments.config, arguments.overrides))
    choice = Choice(
        arguments.number,
        arguments.seed,
        arguments.matching,
        (arguments.min_cosine, arguments.max_cosine),
        arguments.characters,
    )
    nouns = ("corpus", "pairs", "synthetic")
    for line in show_rows(arguments.what, arguments.split, choice, {noun: locate(config, noun) for noun in nouns}):
        print(line)


if __name__ == "__main__":
    exit_with(_run)
