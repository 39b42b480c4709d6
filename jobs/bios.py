"""A known world: a corpus about invented entities, and all that is true of them

python jobs/bios.py --config data/bios/world.yaml [seed=1 out=runs/world-1 …]
"""

from sbp_ray.cli import Parser, exit_with
from sbp_ray.logs import set_up_logging


def _run() -> None:
    parser = Parser(prog="jobs/bios.py", description="See docs/bios.md.")
    parser.add_argument("--config", required=True, metavar="FILE", help="such as data/bios/world.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="change a setting of the world")
    arguments = parser.parse_intermixed_args()
    set_up_logging()
    from sbp_ray.bios.world import write_world
    from sbp_ray.bios.world_settings import BiosConfig
    from sbp_ray.config_file import read_yaml, settings_of

    write_world(settings_of(BiosConfig, read_yaml(arguments.config), arguments.overrides, where=arguments.config))


if __name__ == "__main__":
    exit_with(_run)
